"""Shows what the checks found: as a table of 80 columns, and as a page."""

import base64
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from markupsafe import Markup
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from finetune.checks.check import Checked
from finetune.checks.finding import Example, Finding, Severity
from finetune.data import image_decoding
from finetune.errors import UserError
from finetune.report import tables, wording

# Characters of a row that an example shows in the table and in the page.
IN_TABLE, IN_PAGE = 120, 600
# Of the row whose learned parts are shown: how many parts, how many characters of each, and what
# marks them without colour.
PIECES, PIECE, MARKS = 12, 300, ("«", "»")
STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: ""}
# Side of an image in the page, in pixels.
SIDE = 96


def verdict(checked: Checked) -> str:
    """Returns the counts of findings in words, for example ``2 warnings, 1 note``."""
    counted = Counter(finding.severity for finding in checked.findings)
    parts = [
        f"{counted[severity]} {severity.name.lower()}{'s' if counted[severity] > 1 else ''}"
        for severity in sorted(counted, reverse=True)
    ]
    return ", ".join(parts) or "nothing found"


def count(finding: Finding) -> str:
    """Returns how many rows a finding is about, or nothing."""
    return "" if finding.count is None else wording.rows(finding.count)


def shorten(text: str, most: int) -> str:
    """Returns the beginning of a text, on one line."""
    text = wording.plain(text)
    return text if len(text) <= most else text[: most - 2].rstrip() + " …"


# --- table -----------------------------------------------------------------------------------


def table(checked: Checked, colour: bool = False) -> list[RenderableType]:
    """Returns the parts of the table, for ``tables.as_text`` or a rich console.

    Args:
        colour: whether the console shows colour; otherwise marks show what is learned.
    """
    title = f"{checked.source}: {checked.recipe.task}"
    if checked.name != checked.source:
        title += f", with the recipe {checked.name}"
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in checked.facts.items():
        facts.add_row(Text(name), Text(wording.plain(value)))
    parts: list[RenderableType] = [Text(wording.plain(title)), "", facts, ""]
    if checked.findings:
        found = tables.new_table("", "rows", "finding", numbers=[1])
        found.columns[0].no_wrap = True
        found.columns[2].overflow = "fold"
        for finding in checked.findings:
            name = Text(finding.severity.name.lower(), STYLES[finding.severity])
            found.add_row(name, count(finding), Group(*_lines(finding)))
        parts += [found, ""]
    if checked.learned:
        parts += [*_learned(checked.learned, colour), ""]
    return [*parts, *(Text(f"{line}.") for line in checked.left_out), Text(verdict(checked))]


def _lines(finding: Finding) -> Iterator[RenderableType]:
    yield Text(wording.plain(finding.what), "bold")
    for row in finding.examples:
        said = ": ".join(filter(None, [row.row, row.note]))
        text = shorten(f"{said}: {row.text}" if row.text else said, IN_TABLE)
        yield Padding(Text(text), (0, 0, 0, 2))
    yield Text(f"-> {finding.advice}")


def _learned(pieces: list[tuple[str, bool]], colour: bool) -> list[RenderableType]:
    shown = Text()
    for text, learned in pieces[:PIECES]:
        if len(text) > PIECE:
            text = f"{text[: PIECE // 2]} … {text[-PIECE // 2 :]}"
        # Escape sequences of the data are not for the terminal.
        lines = text.split("\n")
        text = "\n".join("".join(c if c.isprintable() else " " for c in line) for line in lines)
        if learned and not colour:
            text = f"{MARKS[0]}{text}{MARKS[1]}"
        shown.append(text, "bold green" if learned else "dim")
    if pieces[PIECES:]:
        shown.append(" …")
    how = "in colour" if colour else f"between {MARKS[0]} and {MARKS[1]}"
    return [Text(f"What is learned of the first training row ({how}):"), shown]


# --- page ------------------------------------------------------------------------------------


def html(checked: Checked) -> str:
    """Returns a page of its own, without network access or scripts."""
    findings = [
        {
            "severity": finding.severity.name.lower(),
            "count": count(finding),
            "what": wording.plain(finding.what),
            "advice": finding.advice,
            "examples": [
                {
                    "row": row.row,
                    "note": row.note,
                    "text": shorten(row.text, IN_PAGE),
                    "image": _inline(row),
                }
                for row in finding.examples
            ],
        }
        for finding in checked.findings
    ]
    # Imports the figures of reports, which the table does without.
    from finetune.report import page

    template = page.TEMPLATES.get_template("check.html.j2")
    return template.render(checked=checked, findings=findings, verdict=verdict(checked))


def write(checked: Checked, file: Path) -> None:
    """Writes the page.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        file.write_text(html(checked), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"--html {file}: {error.strerror}; name a file in a folder that exists"
        ) from None


def _inline(row: Example) -> Markup | None:
    """Returns an example's image as a URL that contains it."""
    if row.image is None:
        return None
    image = image_decoding.decode(row.image)
    image.thumbnail((SIDE, SIDE))
    return Markup(f"data:image/png;base64,{base64.b64encode(image_decoding.png(image)).decode()}")

"""Shows a study, many runs of one recipe, as plain text and as a page."""

from dataclasses import dataclass, field

from markupsafe import Markup
from rich.console import RenderableType

from finetune.report import tables
from finetune.report.page import TEMPLATES


@dataclass(frozen=True)
class Section:
    """A part of a page: a table (header, rows), an SVG figure, or both."""

    title: str
    note: str = ""
    table: tuple[list[str], list[list[str]]] | None = None
    svg: str | None = None


@dataclass(frozen=True)
class Page:
    """What a study found.

    Attributes:
        headline, meaning: the number that stands for it, and what it is.
        notes: sentences.
    """

    title: str
    headline: str
    meaning: str
    notes: list[str]
    sections: list[Section] = field(default_factory=list)


def render(page: Page) -> str:
    """Returns the study as one HTML file without network access or scripts."""
    return TEMPLATES.get_template("study.html.j2").render(page=page, Markup=Markup)


def text(page: Page) -> str:
    """Returns the study as plain text, without its figures."""
    parts: list[RenderableType] = [page.title, ""]
    for section in page.sections:
        if section.table:
            header, rows = section.table
            table = tables.new_table(*header)
            for row in rows:
                table.add_row(*row)
            parts += [table, *([section.note] if section.note else []), ""]
    return tables.as_text(*parts, *page.notes)

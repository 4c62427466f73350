"""Shows what ``finetune evaluate`` found as plain text, at most 80 columns wide."""

from typing import Any

from rich.console import RenderableType
from rich.table import Table

from finetune.report import tables, wording

# More measures would fill the screen: those that differ most are shown.
MOST_DRIFT = 12


def text(found: dict[str, Any]) -> str:
    """Returns the tables of an evaluation.

    Args:
        found: as ``inference.evaluation.evaluate`` returns it.
    """
    parts: list[RenderableType] = [
        wording.plain(f"{found['run']} on {found['file']}: {wording.rows(found['rows'])} rows"),
        "",
        _metrics(found),
    ]
    if found.get("per_class"):
        parts += ["", *tables.classes(found["per_class"])]
    if 0 < len(found.get("confusion", [])) <= tables.MOST_CONFUSED:
        parts += ["", tables.confusion(found["confusion"], found["label_names"])]
    if found["drift"]:
        parts += ["", *_drift(found["drift"])]
    if "slices" in found:
        parts += ["", *_slices(found)]
    return tables.as_text(*parts, "", *_notes(found))


def _metrics(found: dict[str, Any]) -> Table:
    table = tables.new_table("metric", "these rows", "the run's test rows")
    for name, scores in found["metrics"].items():
        tested = found["tested"].get(name)
        shown = wording.measured(name, tested) if tested else "-"
        table.add_row(wording.title(name), wording.measured(name, scores), shown)
    return table


def _drift(drift: dict[str, dict[str, float]]) -> list[RenderableType]:
    """The means of both sets of rows; those whose difference is clear, or largest, first."""

    def clear(name: str) -> bool:
        return not drift[name]["low"] <= 0 <= drift[name]["high"]

    def size(name: str) -> float:
        value = drift[name]
        width = value["high"] - value["low"]
        return abs(value["new"] - value["tested"]) / width if width else 0.0

    first, *others = drift
    names = [first, *sorted(others, key=lambda name: (not clear(name), -size(name)))]
    table = tables.new_table(
        "mean", "these rows", "test rows", "difference, 95 % interval", numbers=(1, 2)
    )
    for name in names[:MOST_DRIFT]:
        value = drift[name]
        apart = f"{value['new'] - value['tested']:+.3g} [{value['low']:+.3g}, {value['high']:+.3g}]"
        word = ", differs" if clear(name) else ""
        numbers = (f"{value[key]:.4g}" for key in ("new", "tested"))
        table.add_row(wording.plain(name), *numbers, apart + word)
    left = len(names) - MOST_DRIFT
    return [table, f"The {MOST_DRIFT} that differ most; {left} more differ less."][: 1 + (left > 0)]


def _slices(found: dict[str, Any]) -> list[RenderableType]:
    headline, slices = found["headline"], found["slices"]
    title = f"{wording.title(headline)}, 95 % interval"
    table = tables.new_table(wording.plain(found["by"]), "rows", title, "", numbers=(1,))
    for each in slices:
        word = "differs from the other rows" if each["differs"] else ""
        shown = wording.measured(headline, each)
        table.add_row(wording.plain(each["name"]), wording.rows(each["rows"]), shown, word)
    note = (
        f"{len(slices)} slices: of so many 95 % intervals some miss by chance. `differs` holds at "
        "95 % for all of them together (Bonferroni)."
    )
    return [table, note]


def _notes(found: dict[str, Any]) -> list[str]:
    overlap, rejected = found["overlap"], found["rejected"]
    notes = [f"{wording.rows(rejected)} rows of the file cannot be used and are left out."]
    if "reason" in overlap:
        notes.append(
            wording.plain(f"Whether rows are also in train is unknown: {overlap['reason']}")
        )
    else:
        named = f": {', '.join(overlap['first'][:3])}" if overlap["rows"] else ""
        notes.append(f"{wording.rows(overlap['rows'])} of the rows are also in train{named}.")
    return notes[not rejected :]

"""Shows a finished run as one screen of plain text, at most 80 columns wide."""

from collections.abc import Iterable, Sequence
from io import StringIO
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table

from finetune import run_directory
from finetune.report import decided, wording

WIDTH = 80
# More classes would fill the screen; results.json has all of them.
MOST_CLASSES = 12
MOST_CONFUSED = 6


def as_text(*parts: RenderableType) -> str:
    """Renders parts with rich, without colour, markup or trailing spaces."""
    file = StringIO()
    console = Console(
        width=WIDTH, file=file, color_system=None, markup=False, emoji=False, highlight=False
    )
    for part in parts:
        console.print(part)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()).rstrip()


def new_table(*headers: str, numbers: Iterable[int] = ()) -> Table:
    """Returns an empty table; ``numbers`` are the columns that are right-aligned and never cut."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for i, header in enumerate(headers):
        right = i in set(numbers)
        table.add_column(
            header, justify="right" if right else "left", no_wrap=right, overflow="fold"
        )
    return table


# --- one run ---------------------------------------------------------------------------------


def summary(run: run_directory.Run) -> str:
    """Summarises a finished run: its scores, the baselines, its cost and its data.

    Raises:
        UserError: the directory contains no finished run.
    """
    results = run.results()
    parts: list[RenderableType] = [_title(results), _standing(results), "", _others(results)]
    if results.get("per_class"):
        parts += ["", *classes(results["per_class"])]
    if 0 < len(results.get("confusion", [])) <= MOST_CONFUSED:
        parts += ["", confusion(results["confusion"], results["data"]["label_names"])]
    return as_text(*parts, "", _facts(run, results))


def _title(results: dict[str, Any]) -> str:
    tuned = f"{wording.method(results['method'])} of {results['checkpoint']['name']}"
    return wording.plain(f"{results['name']}: {tuned}, seed {results['seed']}") + "\n"


def _standing(results: dict[str, Any]) -> Table:
    headline = results["headline"]
    model = results["metrics"][headline]
    table = new_table(
        f"{wording.rows(model['n'])} test rows", wording.title(headline), "the model is"
    )
    table.columns[1].no_wrap = True
    table.add_row("this model", wording.measured(headline, model))
    for name, scores in results["baselines"].items():
        measured = wording.measured(headline, scores[headline])
        table.add_row(name, measured, wording.apart(headline, scores))
    return table


def _others(results: dict[str, Any]) -> Table:
    (first, *scored), *rows = wording.also_measured(results)
    table = new_table(first, *(f"{name}, 95 % interval" for name in scored))
    for row in rows:
        table.add_row(*row)
    return table


def classes(per_class: dict[str, Any]) -> list[RenderableType]:
    """Returns the table of classes; only those of lowest F1 where there are too many."""
    named = list(per_class.items())
    left = len(named) - MOST_CLASSES
    if left > 0:
        named.sort(key=lambda item: (item[1]["f1"] is None, item[1]["f1"] or 0.0))
    counted = wording.counted(per_class)
    table = new_table("class", "precision", "recall", "F1", counted, numbers=range(1, 5))
    for name, scores in named[:MOST_CLASSES]:
        shares = [wording.share(scores[key]) for key in ("precision", "recall", "f1")]
        table.add_row(wording.plain(name), *shares, wording.rows(scores[counted]))
    if left <= 0:
        return [table]
    note = f"The {MOST_CLASSES} classes of lowest F1; {left} more are in {run_directory.RESULTS}."
    return [table, note]


def confusion(counted: list[list[int]], label_names: list[str]) -> Table:
    """Returns the confusion matrix (K, K) as a table."""
    names = [wording.plain(name) for name in label_names]
    short = [name if len(name) <= 9 else name[:8] + "…" for name in names]
    table = new_table("true, predicted as:", *short, numbers=range(1, len(names) + 1))
    for name, counts in zip(names, counted, strict=True):
        table.add_row(name, *(wording.rows(count) for count in counts))
    return table


def _facts(run: run_directory.Run, results: dict[str, Any]) -> Table:
    cost, data = results["cost"], results["data"]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")

    def fact(name: str, lines: Sequence[str]) -> None:
        if lines:
            grid.add_row(name, "\n".join(lines))

    published = wording.reference(results)
    fact("reference", published.lines if published else [])
    fact(
        "cost",
        [
            f"{wording.duration(cost['train_seconds'])} of training, {wording.speed(cost)}",
            f"{wording.size(cost['peak_memory_bytes'])} peak memory, "
            f"{wording.size(cost['model_bytes'])} on disk; {results['device']}",
            f"trained {wording.trained(cost)}",
        ],
    )
    found = wording.findings(data)
    fact(
        "data",
        [
            wording.plain(f"{data['source']}: {wording.counts(data)}"),
            *([", ".join(found)] if found else []),
            f"test: {wording.split(data['test_is'])}",
            *([wording.views(data)] if wording.views(data) else []),
        ],
    )
    fact("decided", decided.lines(results))
    fact("run", [str(run)])
    fact("report", [str(run.folder / run_directory.REPORT)])
    concluded = wording.conclusion(results)
    fact("verdict", [wording.plain(concluded)] if concluded else [])
    return grid

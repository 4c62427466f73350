"""The recipes there are, a line each."""

from itertools import groupby
from pathlib import Path

import numpy
from rich.console import RenderableType
from rich.table import Table

from finetune import recipe, run_directory
from finetune.errors import UserError
from finetune.recipe import packaged
from finetune.report import wording
from finetune.report.comparison import settings_of, without_seed
from finetune.report.tables import WIDTH, as_text, new_table

RUNS = Path("runs")
HERE = Path("recipes")
# accelerate's own configuration files lie beside the recipes.
NOT_RECIPES = "launch"


def recipes(folder: Path | None = None) -> str:
    """Every recipe below a folder, a line each, with its measured and its published number.

    Without a folder: ``recipes/`` where there is one, else the recipes installed with the package.

    Measured are finished runs below ``runs/`` with the recipe's name and its settings as they are
    now, several seeds by their mean; where there are none, what the recipe itself notes.

    Raises:
        UserError: there is no such folder, or no recipe in it.
    """
    if folder is None and HERE.is_dir():
        folder = HERE
    place = folder or packaged.folder()
    paths = sorted(p for p in place.rglob("*.yaml") if NOT_RECIPES not in p.parent.parts)
    if not paths:
        raise UserError(f"{place}: no recipe (*.yaml) there; without a folder, the installed ones")
    rows, unread = [], []
    for path in paths:
        try:
            read = recipe.load(path)
        except UserError as refusal:
            unread.append(f"not a recipe: {refusal}")
            continue
        published = read.reference
        number = wording.number(published.metric, published.value) if published else ""
        short = str(path.relative_to(place))
        cells = [short, read.tuning.method, read.model.checkpoint, _measured(read), number]
        rows.append((read.task, cells))
    parts: list[RenderableType] = []
    for task, members in groupby(sorted(rows, key=lambda row: row[0]), key=lambda row: row[0]):
        parts += [_recipe_table(task, [cells for _, cells in members]), ""]
    parts.append(f"Train one: finetune train {f'{folder}/' if folder else ''}RECIPE")
    return as_text(*parts, *unread)


def _recipe_table(task: str, rows: list[list[str]]) -> Table:
    headers = [task, "method", "checkpoint", "measured", "paper"]
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    # One line a recipe: what gives way to the rest is the checkpoint's name.
    room = max(8, WIDTH - sum(widths) + widths[2] - 2 * (len(headers) - 1))
    headers[2] = _fitted(headers[2], room)
    headers[3] += "\n(seeds)"
    table = new_table(*headers)
    for path, method, checkpoint, *numbers in rows:
        table.add_row(path, method, _fitted(checkpoint, room), *numbers)
    for column in table.columns[1:]:
        column.no_wrap = True
    return table


def _fitted(name: str, room: int) -> str:
    """A checkpoint's name within ``room`` characters; its owner goes before its letters do."""
    if len(name) > room:
        name = name.replace(":", "/").rpartition("/")[2]
    return name if len(name) <= room else name[: room - 1] + "…"


def _measured(read: recipe.Recipe) -> str:
    note = read.measured
    noted = wording.number(note.metric, note.value) if note else ""
    place = RUNS / read.name
    if not any(place.rglob(run_directory.RESULTS)):
        return noted
    settings, values, headline = without_seed(read.dump()), {}, ""
    for run in run_directory.find([str(place)]):
        results = run.results()
        if results["name"] == read.name and settings_of(run) == settings:
            headline = results["headline"]
            values[results["seed"]] = results["metrics"][headline]["value"]
    if not values:
        return noted
    mean = float(numpy.mean(list(values.values())))
    return f"{wording.number(headline, mean)} ({len(values)})"

"""Lists the recipes of a folder, one line each."""

from itertools import groupby
from pathlib import Path

import numpy
from rich.console import RenderableType
from rich.table import Table

from finetune import recipe, run_directory
from finetune.errors import UserError
from finetune.recipe import packaged
from finetune.report import wording
from finetune.report.aggregate import settings_of, without_seed
from finetune.report.tables import WIDTH, as_text, new_table

RUNS = Path("runs")
HERE = Path("recipes")
# The folder of accelerate's configuration files, below that of the recipes.
NOT_RECIPES = "launch"


def recipes(folder: Path | None = None) -> str:
    """Lists every recipe below a folder with its measured and its published number.

    Without a folder: ``recipes/`` if it exists, else the recipes installed with the package. The
    measured number is the mean over the seeds of finished runs below ``runs/`` that have the
    recipe's name and its present settings. Without such a run it is the recipe's own
    ``measured``.

    Raises:
        UserError: the folder does not exist or contains no recipe.
    """
    if folder is None and HERE.is_dir():
        folder = HERE
    place = folder or packaged.folder()
    paths = sorted(p for p in place.rglob("*.yaml") if NOT_RECIPES not in p.parent.parts)
    if not paths:
        raise UserError(f"{place}: contains no recipe (*.yaml); name another folder")
    rows, unread = [], []
    for path in paths:
        try:
            read = recipe.read(path)
        except UserError as error:
            unread.append(f"not a recipe: {error}")
            continue
        published = read.reference
        number = wording.number(published.metric, published.value) if published else ""
        short = str(path.relative_to(place))
        cells = [short, read.tuning.method, read.model.checkpoint, _measured(read), number]
        rows.append((read.task, cells))
    parts: list[RenderableType] = []
    for task, members in groupby(sorted(rows, key=lambda row: row[0]), key=lambda row: row[0]):
        parts += [_recipe_table(task, [cells for _, cells in members]), ""]
    parts.append(f"To run one: finetune train {f'{folder}/' if folder else ''}RECIPE")
    return as_text(*parts, *unread)


def _recipe_table(task: str, rows: list[list[str]]) -> Table:
    headers = [task, "method", "checkpoint", "measured", "paper"]
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    # Each recipe gets one line; the checkpoint's name is shortened to fit.
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
    """A checkpoint's name in at most ``room`` characters; the owner is cut before the name."""
    if len(name) > room:
        name = name.replace(":", "/").rpartition("/")[2]
    return name if len(name) <= room else name[: room - 1] + "…"


def _measured(read: recipe.Recipe) -> str:
    """The number measured with a recipe and its count of seeds; empty without any."""
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

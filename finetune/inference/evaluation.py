"""Evaluates a finished run on rows that were labelled later: scores, drift, overlap, slices."""

from typing import Any

import numpy
import pandas

from finetune import recipe as recipes
from finetune import run_directory, tasks
from finetune.data import corpus, splits
from finetune.errors import UserError, nearest
from finetune.evaluation import intervals, predictions
from finetune.inference import prediction
from finetune.recipe import Recipe
from finetune.tasks.base import Labelled

# A column of more numbers than that is sliced at its quartiles; of more other values, not at all.
MOST_SLICES = 20


def evaluate(
    run: run_directory.Run, file: str, changes: dict[str, str], by: str | None = None
) -> dict[str, Any]:
    """Scores a run's model on a file of labelled rows.

    Args:
        file: a table or a folder of images, as the run's task reads it.
        changes: keys of the recipe's data section that differ for this file, such as column names.
        by: a column of the file whose values are scored one by one.

    Returns:
        - the scores as in results.json: ``metrics``, ``per_class``, ``confusion``, …
        - ``drift``: what differs from the run's own test rows, each with the mean of both and an
          interval of the difference
        - ``overlap``: the number of rows that are also in train and the first ids; or ``reason``
          why it is unknown
        - ``slices``: with ``by``, the headline metric of each slice, and whether it differs from
          the other rows

    Raises:
        UserError: the file cannot be used, or has a label that the model does not know.
    """
    recipe = _with(recipes.read(run.folder / run_directory.RECIPE, changes), changes)
    results = run.results()
    data, task = results["data"], tasks.find(recipe.task)
    given = task.labelled(file, recipe, data)
    if by is not None and by not in given.table:
        known = [str(column) for column in given.table]
        raise UserError(f"--by: {file} has no column {by!r}; {nearest(by, known)}")

    model, processor, trained = prediction.load(run)
    outputs = prediction.outputs(model, processor, recipe, given.rows)
    rows = predictions.table(given.frame, task.answers(outputs, data), data)
    values = given.values(rows)
    found = {
        "run": str(run),
        "file": file,
        "rows": len(rows),
        "rejected": given.rejected,
        "headline": results["headline"],
        "tested": results["metrics"],
        "label_names": data["label_names"],
        **given.score(outputs, given.labels),
        "drift": _drift(values, given.values(run.predictions())),
        "overlap": _overlap(trained, given),
    }
    if by is not None:
        found |= {"by": by, "slices": _slices(given, outputs, values, by, results["headline"])}
    return found


def _with(recipe: Recipe, changes: dict[str, str]) -> Recipe:
    """Checks that only keys of the data section differ from the run's.

    Raises:
        UserError: another key does.
    """
    for name in changes:
        if name not in recipes.Data.__dataclass_fields__:
            raise UserError(f"--{name}: evaluate takes the run's own {name}; leave it out")
    return recipe


def _drift(
    new: dict[str, numpy.ndarray], tested: dict[str, numpy.ndarray]
) -> dict[str, dict[str, float]]:
    """Compares the means of both sets of rows, by name; empty for a single row."""
    found: dict[str, dict[str, float]] = {}
    if min(len(next(iter(values.values()))) for values in (new, tested)) < 2:
        return found
    for name, values in new.items():
        difference = intervals.unpaired_difference(values, tested[name])
        found[name] = {
            "new": float(values.mean()),
            "tested": float(tested[name].mean()),
            **{key: difference[key] for key in ("low", "high")},
        }
    return found


def _overlap(recipe: Recipe, given: Labelled) -> dict[str, Any]:
    """Compares the rows with the run's training rows, which are read again for it."""
    try:
        train = corpus.load(recipe.data, given.content).train
    except UserError as error:
        return {"reason": str(error)}
    shared = splits.Frame(train, "").shared(given.frame)
    return {"rows": len(shared), "first": shared[: splits.LISTED]}


def _slices(
    given: Labelled, outputs: Any, values: dict[str, numpy.ndarray], by: str, headline: str
) -> list[dict[str, Any]]:
    """Scores each slice; ``differs`` compares it with the other rows over all slices at once.

    The intervals of those differences are at 1 - 0.05 / K for K slices (Bonferroni).

    Raises:
        UserError: the column has too many values.
    """
    names = _sliced(given.table.loc[:, by], by)
    kinds = sorted(set(names))
    right = next(iter(values.values()))
    found = []
    for kind in kinds:
        inside = names == kind
        scores = given.score(outputs[inside], given.labels[inside])
        apart = None
        if min(inside.sum(), (~inside).sum()) > 1:
            level = 1 - 0.05 / len(kinds)
            apart = intervals.unpaired_difference(right[inside], right[~inside], level)
        found.append(
            {
                "name": kind,
                "rows": int(inside.sum()),
                **scores["metrics"][headline],
                "differs": apart is not None and not apart["low"] <= 0 <= apart["high"],
            }
        )
    return found


def _sliced(column: pandas.Series, by: str) -> numpy.ndarray:
    """Returns the name of each row's slice (N,): the value, or the quarter that a number is in."""
    if column.nunique() <= MOST_SLICES:
        return column.astype(str).to_numpy(str)
    numbers: Any = pandas.to_numeric(column, errors="coerce")
    if numbers.isna().any():
        raise UserError(
            f"--by {by}: has {column.nunique()} different values; at most {MOST_SLICES} can be "
            "compared, unless they are numbers"
        )
    quarters: Any = pandas.qcut(numbers, 4, duplicates="drop")
    return quarters.astype(str).to_numpy(str)

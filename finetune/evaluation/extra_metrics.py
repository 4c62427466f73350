"""Further metrics that a recipe names: ``metrics: [matthews_correlation, ./my_metric.py]``.

An entry is one of:

- a built-in name: an ``evaluate.Metric`` of the module ``built_in``
- a path of a .py file that defines exactly one subclass of ``evaluate.Metric``
- an id of the hub, loaded by ``evaluate.load``, which runs that repository's code

Nothing is fetched for the first two. Code is only run from an entry that the user wrote in the
recipe or on the command line, never from a checkpoint or a data set.

A metric is computed from predictions and references as a task makes them: class indices (N,) int,
0/1 matrices (N, K) int for several labels, or numbers (N,) float.
"""

import importlib.util
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from finetune.errors import UserError, nearest
from finetune.evaluation.intervals import Array, Metric, bootstrap
from finetune.evaluation.metrics import MEASURED, METRICS, MetricSpec, spec

# Imported inside functions elsewhere: it takes seconds, and few recipes name metrics.
if TYPE_CHECKING:
    import evaluate

# ``compute`` of a metric that is not built in copies its input into an Arrow table every time, so
# its interval comes from fewer resamples; results.json says how many.
FOREIGN_RESAMPLES = 100


@dataclass(frozen=True)
class ExtraMetric:
    """A metric that a recipe names, with its title and direction."""

    metric: "evaluate.Metric"
    spec: MetricSpec
    is_built_in: bool = False

    def value(self, predictions: Array, references: Array) -> float:
        """Computes the metric on rows (N).

        Raises:
            ValueError: ``compute`` returns several numbers and none has the metric's name.
        """
        if self.is_built_in:
            # Without the copy that ``compute`` makes, so that 1,000 resamples are fast.
            found = self.metric._compute(predictions=predictions, references=references)
        else:
            found = self.metric.compute(predictions=predictions, references=references) or {}
        if self.metric.name not in found and len(found) != 1:
            raise ValueError(
                f"compute() returns {', '.join(found) or 'nothing'}; one number is needed, or one "
                f"named {self.metric.name}"
            )
        return float(found[self.metric.name if self.metric.name in found else next(iter(found))])


def load(names: list[str], problem_type: str, classes: int, where: str) -> dict[str, ExtraMetric]:
    """Loads the metrics that a recipe names and tries each on a few made-up rows.

    A class in a file may declare ``greater_is_better: bool`` (True unless it does), by which
    ``metric_for_best_model`` ranks. A metric of the hub has no known direction.

    Args:
        names: the recipe's ``metrics``.
        classes: K, the number of label names; 0 for regression.
        where: the place of the key, for messages.

    Returns:
        The metrics by their names, which for a class is its own in snake_case.

    Raises:
        UserError: no such metric, it does not fit the problem type, it cannot be loaded or
            computed, or it is measured already.
    """
    out: dict[str, ExtraMetric] = {}
    for entry in names:
        extra = _load(entry, problem_type, where)
        name = extra.metric.name
        if name in out or name in MEASURED[problem_type]:
            raise UserError(f"{where}: {entry}: {name} is measured already; leave it out")
        if name in METRICS and not extra.is_built_in:
            raise UserError(f"{where}: {entry}: {name} is a metric of finetune; rename the class")
        try:
            extra.value(*_made_up(problem_type, classes))
        except Exception as error:
            raise UserError(f"{where}: {entry}: cannot be computed: {_line(error)}") from error
        out[name] = extra
    return out


def add(
    scores: dict[str, Any],
    extra: dict[str, ExtraMetric],
    pair: Callable[[], tuple[Array, Array]],
    resamples: int,
) -> dict[str, Any]:
    """Returns a task's scores with further metrics among its ``metrics``.

    Args:
        pair: returns predictions and references; called if there are further metrics.
        resamples: as in ``measure``.
    """
    if not extra:
        return scores
    return {**scores, "metrics": scores["metrics"] | measure(extra, *pair(), resamples)}


def measure(
    extra: dict[str, ExtraMetric], predictions: Array, references: Array, resamples: int
) -> dict[str, Metric]:
    """Computes metrics with bootstrap intervals over rows.

    A metric that is not built in gets fewer resamples and their number as ``resamples``. With
    resamples, one that is undefined on these rows (NaN) is left out.

    Args:
        predictions, references: (N, ...), as the module's docstring says.
        resamples: 0 gives intervals of zero width, for use in training.

    Returns:
        name -> ``{"value", "low", "high", "n"}``.
    """
    out: dict[str, Metric] = {}
    for name, each in extra.items():

        def statistic(rows: Array, each: ExtraMetric = each) -> float:
            return each.value(predictions[rows], references[rows])

        count = resamples if each.is_built_in else min(resamples, FOREIGN_RESAMPLES)
        found = bootstrap(statistic, len(references), count)
        if count < resamples:
            found["resamples"] = count
        if not resamples or math.isfinite(found["value"]):
            out[name] = found
    return out


def _load(entry: str, problem_type: str, where: str) -> ExtraMetric:
    import evaluate

    from finetune.evaluation.built_in import BUILT_IN

    if entry.endswith(".py"):
        return _from_file(Path(entry), where)
    built_in = BUILT_IN[problem_type]
    if entry in built_in:
        metric = built_in[entry](config_name=problem_type, keep_in_memory=True)
        return ExtraMetric(metric, spec(entry), is_built_in=True)
    known = [*MEASURED[problem_type], *built_in]
    if entry in known:
        raise UserError(f"{where}: {entry} is measured already; leave it out")
    if any(entry in names for names in BUILT_IN.values()):
        raise UserError(
            f"{where}: {entry} is not defined for {problem_type}; it can be {', '.join(built_in)}"
        )
    try:
        metric = evaluate.load(entry, module_type="metric", keep_in_memory=True)
    except Exception as error:
        raise UserError(
            f"{where}: {entry!r} is no built-in metric ({nearest(entry, list(built_in))}), no .py "
            f"file, and cannot be loaded from the hub: {_line(error)}"
        ) from error
    assert isinstance(metric, evaluate.Metric)
    return ExtraMetric(metric, MetricSpec(spec(metric.name).title, greater_is_better=None))


def _from_file(path: Path, where: str) -> ExtraMetric:
    """The one ``evaluate.Metric`` that a file of the user defines; runs the file."""
    import evaluate

    if not path.is_file():
        raise UserError(f"{where}: {path}: no such file")
    name = f"finetune_metric_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    # Dataclasses look their module up by name.
    sys.modules[name] = module
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{where}: {path}: cannot be imported: {_line(error)}") from error
    classes = [
        found
        for found in vars(module).values()
        if isinstance(found, type)
        and issubclass(found, evaluate.Metric)
        # Not those that the file imports.
        and found.__module__ == name
    ]
    if len(classes) != 1:
        raise UserError(
            f"{where}: {path}: defines {len(classes)} subclasses of evaluate.Metric; one is needed"
        )
    greater_is_better = getattr(classes[0], "greater_is_better", True)
    if not isinstance(greater_is_better, bool):
        raise UserError(f"{where}: {path}: greater_is_better has to be True or False")
    try:
        metric = classes[0](keep_in_memory=True)
    except Exception as error:
        raise UserError(f"{where}: {path}: cannot be made: {_line(error)}") from error
    title = spec(metric.name).title
    return ExtraMetric(metric, MetricSpec(title, greater_is_better=greater_is_better))


def _made_up(problem_type: str, classes: int) -> tuple[Array, Array]:
    """Predictions and references of a few rows, every class among them, not all correct."""
    if problem_type == "regression":
        references = numpy.arange(8.0)
        return references[::-1] / 2, references
    references = numpy.resize(numpy.arange(classes), max(8, 2 * classes))
    predictions = references.copy()
    predictions[:classes] = predictions[:classes][::-1]
    if problem_type == "single_label_classification":
        return predictions, references
    rows = numpy.eye(classes, dtype=int)
    return rows[predictions], rows[references]


def _line(error: Exception) -> str:
    """An error as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())

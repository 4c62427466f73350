"""Trains on parts of the rows and says what more rows would bring: ``--learning_curve``.

The error of a model falls with the number of training rows n like ``a * n ** -b + c`` (Hestness et
al. 2017, "Deep Learning Scaling is Predictable, Empirically"). The curve is fitted by weighted
least squares. Its interval is a parametric bootstrap: errors are drawn around the fitted ones, with
the standard error of the measured ones, or more where they scatter more, and fitted again.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from scipy.optimize import least_squares

from finetune import recipe, run_directory
from finetune.errors import UserError
from finetune.evaluation import intervals, metrics
from finetune.recipe import Recipe
from finetune.report import figures, study, wording
from finetune.studies.children import Children, log_of
from finetune.training.signals import Signals

SIZES = 6
# The smallest size has at least so many rows.
FEWEST = 8
RESAMPLES = 300
# Standard errors of a normal distribution that are half of a 95 % interval.
HALF = 1.96


@dataclass(frozen=True)
class Fit:
    """A power law at some numbers of rows (L,), with its 95 % interval, and its exponent."""

    values: numpy.ndarray
    low: numpy.ndarray
    high: numpy.ndarray
    draws: numpy.ndarray
    exponent: float


def train(
    read: Recipe, place: str, flags: Mapping[str, str], seeds: Sequence[int], overwrite: bool
) -> str:
    """Trains on all rows, a half, a quarter, …, and fits the curve.

    Args:
        read: the recipe.
        place, flags: what it was read from, as ``finetune train`` takes them.
        seeds: each size is trained with each.
        overwrite: train all runs anew.

    Returns:
        The result as text.

    Raises:
        UserError: there are too few rows; what a run rejects.
        TrainingError: a run failed; the others are kept.
    """
    recipe.resolve(read)
    flags = dict(flags)
    folder = Path(flags.pop("output_dir", Path("runs") / f"{read.name}-curve")).expanduser()
    found: dict[int, list[dict[str, Any]]] = {}
    with Signals(), Children() as children:

        def job(size: int | None, seed: int, threads: int | None) -> dict[str, Any] | None:
            run = run_directory.Run(folder / f"rows-{size or 'all'}" / f"seed-{seed}")
            given = {**flags, "seed": str(seed)}
            if size:
                given["max_train_samples"] = str(size)
                # Each seed has rows of its own.
                given |= {"sample_seed": str(seed)} if len(seeds) > 1 else {}
            results = children.train(run, place, given, threads, overwrite=overwrite)
            assert results is not None
            found.setdefault(results["data"]["train"], []).append(results)
            headline = results["headline"]
            print(
                f"finetune: {wording.rows(results['data']['train'])} rows, seed {seed}: "
                f"{wording.measured(headline, results['metrics'][headline])}",
                file=sys.stderr,
            )
            return results

        first = run_directory.Run(folder / "rows-all" / f"seed-{seeds[0]}")
        print(
            f"finetune: {SIZES} sizes into {folder}; progress in {log_of(first)}", file=sys.stderr
        )
        job(None, seeds[0], None)
        (rows,) = found
        sizes = [rows // 2**halved for halved in range(1, SIZES)]
        if sizes[-1] < FEWEST:
            raise UserError(
                f"--learning_curve: {rows} training rows are too few for {SIZES} sizes; it needs "
                f"{FEWEST * 2 ** (SIZES - 1)}"
            )
        left = [(None, seed) for seed in seeds[1:]] + [(n, seed) for n in sizes for seed in seeds]
        children.each([lambda threads, each=each: job(*each, threads) for each in left])
    page = _page(read.name, found)
    run_directory.write_whole(folder / run_directory.REPORT, study.render(page))
    return study.text(page)


def is_fitted(headline: str) -> bool:
    """Returns whether a metric tells an error: it is one, or a share, whose best value is 1."""
    spec = metrics.spec(headline)
    return spec.is_share or spec.greater_is_better is False


def error_of(headline: str, values: Any) -> Any:
    """Returns what falls as a model gets better, for a metric; and the metric for that."""
    return values if metrics.spec(headline).greater_is_better is False else 1 - values


def fit(
    rows: Sequence[int], errors: numpy.ndarray, sigmas: numpy.ndarray, at: Sequence[float]
) -> Fit:
    """Fits a power law with an interval.

    Args:
        rows: (M,) numbers of training rows.
        errors, sigmas: (M,) measured errors and their standard errors.
        at: (L,) numbers of rows to tell the error for.
    """
    n, y = numpy.asarray(rows, float), numpy.asarray(errors, float)
    sigma = numpy.maximum(numpy.asarray(sigmas, float), 1e-6)
    whole, places = n.max(), numpy.asarray(at, float)

    def law(n: numpy.ndarray, a: float, b: float, c: float) -> numpy.ndarray:
        # Of the share of the rows, so that the three are of similar size.
        return a * (n / whole) ** -b + c

    def fitted(values: numpy.ndarray) -> numpy.ndarray:
        start = [max(values[n.argmax()] / 2, 1e-6), 0.5, max(values.min() / 2, 1e-9)]
        limits = [0, 0, 0], [numpy.inf, 2, numpy.inf]
        return least_squares(lambda p: (law(n, *p) - values) / sigma, start, bounds=limits).x

    best = fitted(y)
    residuals = (y - law(n, *best)) / sigma
    scatter = max(1.0, float(numpy.sqrt((residuals**2).sum() / (len(n) - 3))))
    draw = numpy.random.default_rng(0)
    drawn = draw.normal(law(n, *best), scatter * sigma, (RESAMPLES, len(n)))
    draws = numpy.array([law(places, *fitted(numpy.maximum(values, 0))) for values in drawn])
    low, high = numpy.percentile(draws, [2.5, 97.5], axis=0)
    return Fit(law(places, *best), low, high, draws, float(best[1]))


def _page(name: str, found: Mapping[int, list[dict[str, Any]]]) -> study.Page:
    """Returns the page: the sizes, the curve, and what twice the rows would bring."""
    sizes = sorted(found)
    headline = found[sizes[0]][0]["headline"]
    title = wording.title(headline)
    name = f"{name}: learning curve over {len(sizes)} sizes"
    measured = {size: _measured(headline, found[size]) for size in sizes}
    table = (
        ["training rows", title, "95 % interval"],
        [
            [
                wording.rows(size),
                wording.number(headline, scores["value"]),
                wording.interval(headline, scores),
            ]
            for size, scores in measured.items()
        ],
    )
    sections = [study.Section("Measured", "On the same test rows.", table)]
    if not is_fitted(headline):
        last = wording.number(headline, measured[sizes[-1]]["value"])
        notes = [f"No power law is fitted to {title}: its best value is not known."]
        return study.Page(name, last, title, notes, sections)
    ends = ("value", "low", "high")
    values = numpy.array([[scores[key] for key in ends] for scores in measured.values()])
    sigmas = (values[:, 2] - values[:, 1]) / 2 / HALF
    twice = 2 * sizes[-1]
    at = [sizes[-1], twice, *numpy.geomspace(sizes[0], twice, 40)]
    law = fit(sizes, error_of(headline, values[:, 0]), sigmas, at)
    middle = error_of(headline, law.values)
    low, high = numpy.sort([error_of(headline, end) for end in (law.low, law.high)], axis=0)
    gains = numpy.diff(error_of(headline, law.draws[:, :2]))
    reach = numpy.percentile(gains, [2.5, 97.5])
    brings = {"value": middle[1] - middle[0], "low": reach[0], "high": reach[1]}
    points = " points" if metrics.spec(headline).is_share else ""
    reached = wording.measured(headline, {"value": middle[1], "low": low[1], "high": high[1]})
    change = wording.signed(headline, brings)
    sure = wording.verdict(headline, {"difference": brings}) == wording.BETTER
    notes = [
        f"Twice the rows ({wording.rows(twice)}) would bring {title} to {reached}, by the fitted "
        f"curve: {change}{points}.{'' if sure else ' That they would help is not certain.'}",
        f"The error falls with the number of rows to the power of -{law.exponent:.2f}.",
    ]
    drawn = figures.power_law(sizes, values, (at[2:], middle[2:], low[2:], high[2:]), title)
    note = "With the 95 % interval of the curve, up to twice the rows."
    sections.append(study.Section("Power law", note, svg=drawn))
    value, _, interval = change.partition(" ")
    meaning = f"{title}{points} by twice the rows {interval}"
    return study.Page(name, value, meaning, notes, sections)


def _measured(headline: str, results: Sequence[dict[str, Any]]) -> wording.Metric:
    """Returns the metric of a size: over its seeds, or of its only run over the test rows."""
    scores = [each["metrics"][headline] for each in results]
    if len(scores) == 1:
        return scores[0]
    return intervals.student([each["value"] for each in scores])

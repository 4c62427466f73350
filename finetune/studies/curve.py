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


def error_of(headline: str, value: float) -> float | None:
    """Returns what falls to 0 or a limit above as a model gets better; None where it is unknown."""
    spec = metrics.spec(headline)
    if spec.greater_is_better is False:
        return value
    return 1 - value if spec.is_share else None


def fit(
    rows: Sequence[int], errors: Sequence[float], sigmas: Sequence[float], at: Sequence[float]
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
    errors = [error_of(headline, scores["value"]) for scores in measured.values()]
    most = sizes[-1]
    last = measured[most]
    name = f"{name}: learning curve over {len(sizes)} sizes"
    if None in errors:
        notes = [f"No power law is fitted to {title}: it has no known best value."]
        return study.Page(name, wording.number(headline, last["value"]), title, notes, sections)
    places = numpy.geomspace(sizes[0], 2 * most, 40)
    sigmas = [(scores["high"] - scores["low"]) / 2 / HALF for scores in measured.values()]
    law = fit(sizes, [float(e or 0) for e in errors], sigmas, [most, 2 * most, *places])
    gain = law.draws[:, 0] - law.draws[:, 1]
    value, sign = law.values[0] - law.values[1], 1.0
    if metrics.spec(headline).greater_is_better is False:
        value, gain, sign = -value, -gain, -1.0
    low, high = numpy.percentile(gain, [2.5, 97.5])
    brings = {"value": value, "low": low, "high": high}
    ends = {
        "value": error_of(headline, law.values[1]),
        "low": error_of(headline, law.high[1] if sign > 0 else law.low[1]),
        "high": error_of(headline, law.low[1] if sign > 0 else law.high[1]),
    }
    clear = low > 0 if sign > 0 else high < 0
    notes = [
        f"Twice the rows ({wording.rows(2 * most)}) would bring {title} to "
        f"{wording.measured(headline, ends)}: {wording.signed(headline, brings)}"
        f"{' points' if metrics.spec(headline).is_share else ''} by the fitted curve."
        + ("" if clear else " That they would bring anything is not certain."),
        f"The error falls with the number of rows to the power of -{law.exponent:.2f}.",
    ]
    band = [law.values[2:], law.low[2:], law.high[2:]]
    shown = [
        {key: error_of(headline, scores[key]) for key in ("value", "low", "high")}
        for scores in measured.values()
    ]
    # Of an error, the ends of the interval change places.
    bars = [
        {"value": e["value"], "low": min(e["low"], e["high"]), "high": max(e["low"], e["high"])}
        for e in shown
    ]
    drawn = figures.power_law(
        sizes,
        bars,
        (places.tolist(), *(part.tolist() for part in band)),
        title if sign < 0 else f"1 - {title}",
    )
    sections.append(
        study.Section("Power law", "With its 95 % interval, up to twice the rows.", svg=drawn)
    )
    return study.Page(
        name,
        f"{wording.signed(headline, brings).split(' ')[0]}",
        f"{title}{', points,' if metrics.spec(headline).is_share else ''} from twice the rows "
        f"[{wording.signed(headline, brings).split('[')[1]}",
        notes,
        sections,
    )


def _measured(headline: str, results: Sequence[dict[str, Any]]) -> wording.Metric:
    """Returns the metric of a size: over its seeds, or of its only run over the test rows."""
    scores = [each["metrics"][headline] for each in results]
    if len(scores) == 1:
        return scores[0]
    return intervals.student([each["value"] for each in scores])

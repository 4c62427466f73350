"""95 % intervals of a metric: Wilson's for shares, the percentile bootstrap for the rest.

A result is ``{"value", "low", "high", "n"}``: the metric on all ``n`` rows and its interval over
resampled rows. Random draws are seeded, so equal input gives equal intervals.
"""

import warnings
from collections.abc import Callable

import numpy

Array = numpy.ndarray
Metric = dict[str, float]
Statistic = Callable[[Array], float]
RESAMPLES = 1000


def wilson(correct: int, n: int) -> Metric:
    """Returns a share with Wilson's 95 % score interval (Wilson 1927)."""
    # Imported here because finetune predict imports this module and needs no interval.
    from scipy.stats import binomtest

    interval = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    return {"value": correct / n, "low": float(interval.low), "high": float(interval.high), "n": n}


def bootstrap(statistic: Statistic, n: int, resamples: int = RESAMPLES) -> Metric:
    """Returns a statistic with its 95 % percentile bootstrap interval (Efron 1979).

    Args:
        statistic: maps row indices (n,) int to a number; called on all rows, then on resamples.
            A resample where it is NaN (undefined) is ignored.
        resamples: number of resamples; 0 gives an interval of zero width, for use in training.
    """
    value = float(statistic(numpy.arange(n)))
    if not resamples:
        return {"value": value, "low": value, "high": value, "n": n}
    draw = numpy.random.default_rng(0)
    values = [statistic(draw.integers(0, n, n)) for _ in range(resamples)]
    low, high = numpy.nanpercentile(values, [2.5, 97.5])
    return {"value": value, "low": float(low), "high": float(high), "n": n}


def difference(ours: Statistic, theirs: Statistic, n: int) -> Metric:
    """Returns the paired difference of two models' statistics on the same rows.

    Each resample draws the same rows for both models, so errors that they share cancel out: the
    difference can be clear although the models' own intervals overlap.
    """
    return bootstrap(lambda rows: ours(rows) - theirs(rows), n)


def unpaired_difference(ours: Array, theirs: Array, level: float = 0.95) -> Metric:
    """Returns by how much the mean of ``ours`` (M,) exceeds that of ``theirs`` (N,) of other rows.

    The interval is Welch's, for unequal variances; it has zero width where neither side varies.
    Both sides have at least two rows.
    """
    from scipy.stats import ttest_ind

    value = float(ours.mean() - theirs.mean())
    low = high = value
    if numpy.ptp(ours) > 0 or numpy.ptp(theirs) > 0:
        with warnings.catch_warnings():
            # A side that does not vary has no variance to lose precision of.
            warnings.filterwarnings("ignore", "Precision loss occurred", RuntimeWarning)
            interval = ttest_ind(ours, theirs, equal_var=False).confidence_interval(level)
        low, high = float(interval.low), float(interval.high)
    return {"value": value, "low": low, "high": high, "n": len(ours)}


def over_seeds(values: Array, resamples: int = RESAMPLES) -> Metric:
    """Returns the mean over seeds and rows, with an interval that covers both sources of variance.

    Every resample draws seeds and rows anew (the pigeonhole bootstrap, Owen 2007, whose intervals
    are conservative). For a paired difference, pass the differences of two models that were
    trained with the same seeds and tested on the same rows.

    Args:
        values: (S, N), for example whether the model of seed s was right on row n.
    """
    seeds, rows = values.shape
    draw = numpy.random.default_rng(0)
    means = [
        values[draw.integers(0, seeds, seeds)][:, draw.integers(0, rows, rows)].mean()
        for _ in range(resamples)
    ]
    low, high = numpy.percentile(means, [2.5, 97.5])
    return {"value": float(values.mean()), "low": float(low), "high": float(high), "n": rows}

"""95 % intervals of a metric: Wilson's for shares, the percentile bootstrap for the rest.

A result is ``{"value", "low", "high", "n"}``: the metric on all ``n`` rows and its interval over
resampled rows. Random draws are seeded, so equal input gives equal intervals.
"""

import warnings
from collections.abc import Callable, Sequence

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

    Args:
        values: (S, N), for example whether the model of seed s was right on row n; or for a paired
            difference, those of two models that were trained with the same seeds and tested on the
            same rows, subtracted.
    """
    statistics = [lambda rows, own=own: own[rows].mean() for own in values]
    return pigeonhole(statistics, values.shape[1], resamples)


def pigeonhole(statistics: Sequence[Statistic], rows: int, resamples: int = RESAMPLES) -> Metric:
    """Returns the mean of a statistic over seeds, with an interval over both seeds and rows.

    Every resample draws seeds and rows anew (the pigeonhole bootstrap, Owen 2007, whose intervals
    are conservative).

    Args:
        statistics: one for each seed, of row indices.
        rows: how many there are.

    Returns:
        Also ``p``: two-sided, for the hypothesis that the mean is 0; at least 2 / (resamples + 1).
    """
    seeds = len(statistics)
    value = float(numpy.mean([each(numpy.arange(rows)) for each in statistics]))
    draw = numpy.random.default_rng(0)
    means = numpy.empty(resamples)
    for i in range(resamples):
        drawn, places = draw.integers(0, seeds, seeds), draw.integers(0, rows, rows)
        means[i] = numpy.mean([statistics[seed](places) for seed in drawn])
    low, high = numpy.nanpercentile(means, [2.5, 97.5])
    tail = min((means <= 0).sum(), (means >= 0).sum())
    p = min(1.0, 2 * (tail + 1) / (resamples + 1))
    return {"value": value, "low": float(low), "high": float(high), "n": rows, "p": float(p)}


def student(values: Sequence[float]) -> Metric:
    """Returns the mean of one value per seed with its 95 % t interval (Student 1908).

    Returns:
        Also ``p``: two-sided, for the hypothesis that the mean is 0.
    """
    from scipy.special import stdtr, stdtrit

    sample = numpy.array(values)
    n, mean = len(sample), float(sample.mean())
    error = float(sample.std(ddof=1) / n**0.5)
    reach = float(stdtrit(n - 1, 0.975)) * error
    p = 2 * float(stdtr(n - 1, -abs(mean) / error)) if error else float(mean == 0)
    return {"value": mean, "low": mean - reach, "high": mean + reach, "n": n, "p": p}


def holm(values: Sequence[float]) -> list[float]:
    """Returns p values corrected for their number, which controls any false finding (Holm 1979)."""
    order = numpy.argsort(values)
    factors = numpy.arange(len(values), 0, -1)
    corrected = numpy.maximum.accumulate(numpy.asarray(values)[order] * factors)
    back = numpy.argsort(order)
    return [float(p) for p in numpy.minimum(corrected, 1.0)[back]]

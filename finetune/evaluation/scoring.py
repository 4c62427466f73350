"""(logits, labels) -> metrics with intervals; numpy in, plain dicts out.

Every metric is ``{"value", "low", "high", "n"}`` with a 95 % interval over the rows: Wilson's for
accuracy, the percentile bootstrap for the rest. What seeds add is for `finetune compare`.
"""

from collections.abc import Callable
from typing import Any

import numpy
from scipy.special import expit, log_expit, log_softmax, softmax
from scipy.stats import binomtest, rankdata
from sklearn.metrics import average_precision_score, confusion_matrix, r2_score

Array = numpy.ndarray
Metric = dict[str, float]
RESAMPLES = 1000
BINS = 15
# What validation chooses by and tables show first; for all of them more is better.
HEADLINE = {
    "single_label_classification": "accuracy",
    "multi_label_classification": "macro_f1",
    "regression": "r2",
}


def wilson(correct: int, n: int) -> Metric:
    """A share with Wilson's 95 % score interval (Wilson 1927)."""
    interval = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    return {"value": correct / n, "low": float(interval.low), "high": float(interval.high), "n": n}


def bootstrap(statistic: Callable[[Array], float], n: int, resamples: int = RESAMPLES) -> Metric:
    """``statistic`` of row indices, with its 95 % percentile bootstrap interval (Efron 1979).

    Args:
        statistic: maps row indices (n,) int to a number; called on all rows, then on resamples.
        resamples: how many; 0 gives an interval of no width, for quick use while training.
    """
    value = float(statistic(numpy.arange(n)))
    if not resamples:
        return {"value": value, "low": value, "high": value, "n": n}
    draw = numpy.random.default_rng(0)
    values = [statistic(draw.integers(0, n, n)) for _ in range(resamples)]
    low, high = numpy.nanpercentile(values, [2.5, 97.5])
    return {"value": value, "low": float(low), "high": float(high), "n": n}


def over_seeds(values: Array, resamples: int = RESAMPLES) -> Metric:
    """The mean of one number a seed and row, with what another seed *and* other rows may change.

    Both are drawn anew in every resample (the pigeonhole bootstrap, Owen 2007, which errs on the
    wide side). For a difference, give the differences of two models with the same seeds and rows.

    Args:
        values: (S, N), for example whether seed s was right on row n.
    """
    seeds, rows = values.shape
    draw = numpy.random.default_rng(0)
    means = [
        values[draw.integers(0, seeds, seeds)][:, draw.integers(0, rows, rows)].mean()
        for _ in range(resamples)
    ]
    low, high = numpy.percentile(means, [2.5, 97.5])
    return {"value": float(values.mean()), "low": float(low), "high": float(high), "n": rows}


def _macro_f1(confusion: Array) -> float:
    """Mean F1 over the classes that occur; ``confusion`` (K, K) counts, rows are the truth."""
    hits, truth, said = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    occurs = truth + said > 0
    return float((2 * hits[occurs] / (truth + said)[occurs]).mean())


def reliability(confidence: Array, correct: Array) -> dict[str, list[float]]:
    """Rows binned by confidence: per bin the mean confidence, the accuracy and the count.

    Args:
        confidence: (N,) probability of the predicted class.
        correct: (N,) whether it was right.
    """
    which = numpy.minimum((confidence * BINS).astype(int), BINS - 1)
    count = numpy.bincount(which, minlength=BINS)
    filled = count > 0
    mean = numpy.bincount(which, confidence, BINS)[filled] / count[filled]
    right = numpy.bincount(which, correct, BINS)[filled] / count[filled]
    return {
        "confidence": mean.tolist(),
        "accuracy": right.tolist(),
        "count": count[filled].astype(float).tolist(),
    }


def calibration_error(confidence: Array, correct: Array) -> float:
    """Expected calibration error over 15 equal bins (Guo et al. 2017)."""
    bins = {k: numpy.array(v) for k, v in reliability(confidence, correct).items()}
    gaps = numpy.abs(bins["confidence"] - bins["accuracy"])
    return float((gaps * bins["count"]).sum() / len(confidence))


def single_label(logits: Array, labels: Array, names: list[str], resamples: int) -> dict[str, Any]:
    """Scores of a classifier: logits (N, K) float, labels (N,) int below K."""
    n, k = logits.shape
    probabilities = softmax(logits, axis=1)
    predicted = logits.argmax(1)
    correct = predicted == labels
    losses = -log_softmax(logits, axis=1)[numpy.arange(n), labels]
    brier = ((probabilities - numpy.eye(k)[labels]) ** 2).sum(1)
    confidence = probabilities.max(1)
    cells = labels * k + predicted

    def f1(rows: Array) -> float:
        return _macro_f1(numpy.bincount(cells[rows], minlength=k * k).reshape(k, k))

    def ece(rows: Array) -> float:
        return calibration_error(confidence[rows], correct[rows])

    metrics = {
        "accuracy": wilson(int(correct.sum()), n),
        "macro_f1": bootstrap(f1, n, resamples),
        "log_loss": bootstrap(lambda rows: losses[rows].mean(), n, resamples),
        "brier": bootstrap(lambda rows: brier[rows].mean(), n, resamples),
        "calibration_error": bootstrap(ece, n, resamples),
    }
    confusion = confusion_matrix(labels, predicted, labels=range(k))
    return {
        "metrics": metrics,
        "per_class": _per_class(names, confusion.diagonal(), confusion.sum(1), confusion.sum(0)),
        "confusion": confusion.tolist(),
        "reliability": reliability(confidence, correct),
    }


def multi_label(logits: Array, labels: Array, names: list[str], resamples: int) -> dict[str, Any]:
    """Scores of K yes-or-no answers a row: logits (N, K) float, labels (N, K) 0 or 1."""
    n = len(logits)
    truth, predicted = labels.astype(bool), logits > 0
    losses = -(labels * log_expit(logits) + (1 - labels) * log_expit(-logits)).mean(1)

    hits, marks = truth & predicted, truth.astype(int) + predicted

    def micro_f1(rows: Array) -> float:
        return float(2 * hits[rows].sum() / max(marks[rows].sum(), 1))

    exact = (truth == predicted).all(1)
    metrics = {
        "macro_f1": bootstrap(_labels_f1(truth, predicted), n, resamples),
        "micro_f1": bootstrap(micro_f1, n, resamples),
        "exact_match": wilson(int(exact.sum()), n),
        "log_loss": bootstrap(lambda rows: losses[rows].mean(), n, resamples),
    }
    per_class = _per_class(names, hits.sum(0), truth.sum(0), predicted.sum(0))
    for name, column, score in zip(names, truth.T, logits.T, strict=True):
        per_class[name]["average_precision"] = (
            float(average_precision_score(column, score)) if column.any() else None
        )
    return {"metrics": metrics, "per_class": per_class}


def regression(logits: Array, labels: Array, resamples: int) -> dict[str, Any]:
    """Scores of predicted numbers: logits (N, 1) or (N,) float, labels (N,) float."""
    predicted, n = logits.reshape(len(labels)), len(labels)
    errors = predicted - labels
    varies = numpy.ptp(labels) > 0

    def correlation(ranked: bool) -> Callable[[Array], float]:
        def statistic(rows: Array) -> float:
            pair = labels[rows], predicted[rows]
            if min(numpy.ptp(pair[0]), numpy.ptp(pair[1])) == 0:
                return numpy.nan
            return float(numpy.corrcoef([rankdata(v) for v in pair] if ranked else pair)[0, 1])

        return statistic

    metrics = {
        "r2": bootstrap(_r2(labels, predicted), n, resamples),
        "rmse": bootstrap(lambda rows: float((errors[rows] ** 2).mean() ** 0.5), n, resamples),
        "mae": bootstrap(lambda rows: float(numpy.abs(errors[rows]).mean()), n, resamples),
    }
    if varies and numpy.ptp(predicted) > 0 and n > 2:
        metrics["pearson"] = bootstrap(correlation(ranked=False), n, resamples)
        metrics["spearman"] = bootstrap(correlation(ranked=True), n, resamples)
    return {"metrics": metrics}


def _labels_f1(truth: Array, predicted: Array) -> Callable[[Array], float]:
    hits, marks = truth & predicted, truth.astype(int) + predicted
    return lambda rows: float((2 * hits[rows].sum(0) / numpy.maximum(marks[rows].sum(0), 1)).mean())


def _r2(labels: Array, predicted: Array) -> Callable[[Array], float]:
    varies = numpy.ptp(labels) > 0

    def r2(rows: Array) -> float:
        if numpy.ptp(labels[rows]) == 0:
            return numpy.nan if varies else 0.0
        return float(r2_score(labels[rows], predicted[rows]))

    return r2


def _headline(problem_type: str, logits: Array, labels: Array) -> Callable[[Array], float]:
    """The headline metric as a statistic of row indices."""
    if problem_type == "single_label_classification":
        correct = logits.argmax(1) == labels
        return lambda rows: float(correct[rows].mean())
    if problem_type == "multi_label_classification":
        return _labels_f1(labels.astype(bool), logits > 0)
    return _r2(labels, logits.reshape(len(labels)))


def difference(problem_type: str, logits: Array, other: Array, labels: Array) -> Metric:
    """Headline of ``logits`` less that of ``other`` on the same rows, as ``score`` takes them.

    The bootstrap draws the same rows for both, so what the two have in common cancels out: two
    intervals may overlap where the difference is clear.
    """
    ours, theirs = (_headline(problem_type, each, labels) for each in (logits, other))
    return bootstrap(lambda rows: ours(rows) - theirs(rows), len(labels))


def bits_per_byte(sums: Array) -> Callable[[Array], float]:
    """Bits that a byte of text costs, as a statistic of row indices; the less the better.

    Unlike perplexity it can be compared across tokenizers.

    Args:
        sums: (N, 3) float: nats, tokens and bytes of N documents.
    """
    bits = sums[:, 0] / numpy.log(2)
    return lambda rows: float(bits[rows].sum() / sums[rows, 2].sum())


def language(sums: Array, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Scores of a language model, with intervals over documents: ``sums`` as above."""
    sums = numpy.asarray(sums, dtype=numpy.float64)

    def perplexity(rows: Array) -> float:
        return float(numpy.exp(sums[rows, 0].sum() / sums[rows, 1].sum()))

    metrics = {
        "bits_per_byte": bootstrap(bits_per_byte(sums), len(sums), resamples),
        "perplexity": bootstrap(perplexity, len(sums), resamples),
    }
    return {"metrics": metrics}


def masked(sums: Array, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Scores of guessed tokens, with intervals over texts.

    Args:
        sums: (N, 3) float: nats, hidden tokens and right guesses of N texts.
    """
    nats, hidden, right = numpy.asarray(sums, dtype=numpy.float64).T
    metrics = {
        "masked_accuracy": bootstrap(
            lambda rows: float(right[rows].sum() / hidden[rows].sum()), len(sums), resamples
        ),
        "log_loss": bootstrap(
            lambda rows: float(nats[rows].sum() / hidden[rows].sum()), len(sums), resamples
        ),
    }
    return {"metrics": metrics}


def mean(name: str, values: Array, resamples: int = RESAMPLES) -> dict[str, Any]:
    """The mean over rows of one number each, ``values`` (N,) or (N, 1), as ``score`` returns it."""
    flat = values.reshape(-1)
    return {"metrics": {name: bootstrap(lambda rows: flat[rows].mean(), len(flat), resamples)}}


def score(
    problem_type: str, logits: Array, labels: Array, names: list[str], resamples: int = RESAMPLES
) -> dict[str, Any]:
    """All scores of a split.

    Args:
        logits: (N, K) float, before softmax or sigmoid; (N, 1) for regression.
        labels: (N,) int, (N, K) 0/1, or (N,) float, as ``problem_type`` says.
        names: the K label names; empty for regression.

    Returns:
        ``metrics``, and where they make sense ``per_class``, ``confusion`` (K x K counts, rows
        are the truth) and ``reliability``.
    """
    logits = numpy.asarray(logits, dtype=numpy.float64)
    if problem_type == "single_label_classification":
        return single_label(logits, labels, names, resamples)
    if problem_type == "multi_label_classification":
        return multi_label(logits, labels, names, resamples)
    return regression(logits, labels, resamples)


def probabilities(problem_type: str, logits: Array) -> Array:
    """(N, K) probabilities, rows summing to one only for a single label; targets as they are."""
    logits = numpy.asarray(logits, dtype=numpy.float64)
    if problem_type == "single_label_classification":
        return softmax(logits, axis=1)
    return expit(logits) if problem_type == "multi_label_classification" else logits


def _per_class(names: list[str], hits: Array, truth: Array, said: Array) -> dict[str, Any]:
    """Precision, recall and F1 by class from counts (K,); None where nothing is divided by."""

    def share(part: int, whole: int) -> float | None:
        return float(part / whole) if whole else None

    return {
        name: {"precision": share(h, s), "recall": share(h, t), "f1": share(2 * h, s + t)}
        | {"rows": int(t)}
        for name, h, t, s in zip(names, hits, truth, said, strict=True)
    }

"""Scores a split: (logits, labels) -> metrics with 95 % intervals over the rows.

NumPy in, plain dicts out. Shares of correct rows get Wilson's interval, everything else the
percentile bootstrap (see ``intervals``). The variance over training seeds is not part of these
intervals; ``finetune compare`` shows it.
"""

from collections.abc import Callable
from typing import Any

import numpy
from scipy.special import expit, log_expit, log_softmax, softmax

from finetune.evaluation import intervals, statistics
from finetune.evaluation.decisions import Outputs, both
from finetune.evaluation.intervals import RESAMPLES, Array, Metric, bootstrap, wilson

# scikit-learn and scipy.stats are imported inside functions: finetune predict needs neither.

BINS = 15


def reliability(confidence: Array, correct: Array) -> dict[str, list[float]]:
    """Bins rows by confidence; returns mean confidence, accuracy and count of the filled bins.

    Args:
        confidence: (N,) probability of the predicted class.
        correct: (N,) whether that class is the true one.
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
    """Returns the expected calibration error over 15 bins of equal width (Guo et al. 2017)."""
    bins = {k: numpy.array(v) for k, v in reliability(confidence, correct).items()}
    gaps = numpy.abs(bins["confidence"] - bins["accuracy"])
    return float((gaps * bins["count"]).sum() / len(confidence))


def single_label(
    logits: Array,
    labels: Array,
    names: list[str],
    resamples: int,
    decided: Array,
    positive: str | None = None,
) -> dict[str, Any]:
    """Scores a classifier; arguments as those of ``score``."""
    n, k = logits.shape
    probabilities = softmax(logits, axis=1)
    predicted = decided.argmax(1)
    correct = predicted == labels
    likeliest = logits.argmax(1) == labels
    losses = -log_softmax(logits, axis=1)[numpy.arange(n), labels]
    brier = ((probabilities - numpy.eye(k)[labels]) ** 2).sum(1)
    confidence = probabilities.max(1)
    cells = labels * k + predicted

    def f1(rows: Array) -> float:
        return statistics.macro_f1(numpy.bincount(cells[rows], minlength=k * k).reshape(k, k))

    def ece(rows: Array) -> float:
        return calibration_error(confidence[rows], likeliest[rows])

    metrics = {
        "accuracy": wilson(int(correct.sum()), n),
        "macro_f1": bootstrap(f1, n, resamples),
        "log_loss": bootstrap(lambda rows: losses[rows].mean(), n, resamples),
        "brier": bootstrap(lambda rows: brier[rows].mean(), n, resamples),
        "calibration_error": bootstrap(ece, n, resamples),
    }
    if positive is not None:
        precision = statistics.of_positive(logits, labels, names.index(positive))
        metrics["average_precision"] = bootstrap(precision, n, resamples)
    confusion = numpy.bincount(cells, minlength=k * k).reshape(k, k)
    return {
        "metrics": metrics,
        "per_class": _per_class(names, confusion.diagonal(), confusion.sum(1), confusion.sum(0)),
        "confusion": confusion.tolist(),
        "reliability": reliability(confidence, likeliest),
    }


def multi_label(
    logits: Array, labels: Array, names: list[str], resamples: int, decided: Array
) -> dict[str, Any]:
    """Scores a multi-label classifier; arguments as those of ``score``."""
    from sklearn.metrics import average_precision_score

    n = len(logits)
    truth, predicted = labels.astype(bool), decided > 0
    losses = -(labels * log_expit(logits) + (1 - labels) * log_expit(-logits)).mean(1)

    hits, marks = truth & predicted, truth.astype(int) + predicted

    def micro_f1(rows: Array) -> float:
        return float(2 * hits[rows].sum() / max(marks[rows].sum(), 1))

    exact = (truth == predicted).all(1)
    metrics = {
        "macro_f1": bootstrap(statistics.labels_f1(truth, predicted), n, resamples),
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
    """Scores a regression: logits (N, 1) or (N,) float, labels (N,) float.

    Correlations are left out where they are undefined: a side is constant, or two rows.
    """
    predicted, n = logits.reshape(len(labels)), len(labels)
    errors = predicted - labels
    varies = numpy.ptp(labels) > 0
    metrics = {
        "r2": bootstrap(statistics.r2(labels, predicted), n, resamples),
        "rmse": bootstrap(lambda rows: float((errors[rows] ** 2).mean() ** 0.5), n, resamples),
        "mae": bootstrap(lambda rows: float(numpy.abs(errors[rows]).mean()), n, resamples),
    }
    if varies and numpy.ptp(predicted) > 0 and n > 2:
        metrics["pearson"] = bootstrap(
            statistics.correlation(labels, predicted, False), n, resamples
        )
        metrics["spearman"] = bootstrap(
            statistics.correlation(labels, predicted, True), n, resamples
        )
    return {"metrics": metrics}


def difference(
    problem_type: str,
    ours: Outputs,
    theirs: Outputs,
    labels: Array,
    headline: str = "",
    positive: int = 0,
) -> Metric:
    """Returns by how much the headline of ``ours`` exceeds that of ``theirs``, paired by row.

    Args:
        ours, theirs, labels: of the shapes that ``score`` takes.
        headline: of a single label: accuracy, macro_f1 or average_precision.
        positive: the class of average_precision.
    """
    a, b = (
        statistics.headline(problem_type, headline, each, labels, positive)
        for each in (ours, theirs)
    )
    return intervals.difference(a, b, len(labels))


def bits_per_byte(sums: Array) -> Callable[[Array], float]:
    """Bits per byte of text, as a statistic of row indices; less is better.

    Comparable between models with different tokenizers, which perplexity is not.

    Args:
        sums: (N, 3) float: nats, tokens and bytes of N documents.
    """
    bits = sums[:, 0] / numpy.log(2)
    return lambda rows: float(bits[rows].sum() / sums[rows, 2].sum())


def language(sums: Array, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Scores a causal LM, with intervals over documents; ``sums`` as in ``bits_per_byte``."""
    sums = numpy.asarray(sums, dtype=numpy.float64)

    def perplexity(rows: Array) -> float:
        return float(numpy.exp(sums[rows, 0].sum() / sums[rows, 1].sum()))

    metrics = {
        "bits_per_byte": bootstrap(bits_per_byte(sums), len(sums), resamples),
        "perplexity": bootstrap(perplexity, len(sums), resamples),
    }
    return {"metrics": metrics}


def masked_accuracy(sums: Array) -> Callable[[Array], float]:
    """Share of masked tokens predicted correctly, as a statistic of row indices.

    Args:
        sums: (N, 3) float: nats, masked tokens and correct predictions of N texts.
    """
    return lambda rows: float(sums[rows, 2].sum() / sums[rows, 1].sum())


def masked(sums: Array, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Scores a masked LM, with intervals over texts; ``sums`` as in ``masked_accuracy``."""
    sums = numpy.asarray(sums, dtype=numpy.float64)

    def log_loss(rows: Array) -> float:
        return float(sums[rows, 0].sum() / sums[rows, 1].sum())

    metrics = {
        "masked_accuracy": bootstrap(masked_accuracy(sums), len(sums), resamples),
        "log_loss": bootstrap(log_loss, len(sums), resamples),
    }
    return {"metrics": metrics}


def mean(name: str, values: Array, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Scores by the mean of one number per row, ``values`` (N,) or (N, 1)."""
    flat = values.reshape(-1)
    return {"metrics": {name: bootstrap(lambda rows: flat[rows].mean(), len(flat), resamples)}}


def score(
    problem_type: str,
    outputs: Outputs,
    labels: Array,
    names: list[str],
    resamples: int = RESAMPLES,
    positive: str | None = None,
) -> dict[str, Any]:
    """Scores a classification or regression split.

    Args:
        outputs: logits (N, K) float, before softmax or sigmoid; (N, 1) for regression. Or a pair of
            them, as ``decisions.both`` takes it.
        labels: (N,) int, (N, K) 0/1, or (N,) float, as ``problem_type`` says.
        names: the K label names; empty for regression.
        positive: the one of two classes whose average precision is measured.

    Returns:
        ``metrics``; for classification also ``per_class``; for a single label also ``confusion``
        (K x K counts, rows are true classes) and ``reliability``.
    """
    logits, decided = (numpy.asarray(each, dtype=numpy.float64) for each in both(outputs))
    if problem_type == "single_label_classification":
        return single_label(logits, labels, names, resamples, decided, positive)
    if problem_type == "multi_label_classification":
        return multi_label(logits, labels, names, resamples, decided)
    return regression(logits, labels, resamples)


def probabilities(problem_type: str, logits: Array) -> Array:
    """Returns probabilities (N, K) of logits; for regression the values unchanged.

    Rows sum to one only for a single label.
    """
    logits = numpy.asarray(logits, dtype=numpy.float64)
    if problem_type == "single_label_classification":
        return softmax(logits, axis=1)
    return expit(logits) if problem_type == "multi_label_classification" else logits


def _per_class(names: list[str], hits: Array, truth: Array, predicted: Array) -> dict[str, Any]:
    """Precision, recall and F1 by class from counts (K,); None where the denominator is 0."""

    def share(part: int, whole: int) -> float | None:
        return float(part / whole) if whole else None

    return {
        name: {"precision": share(h, p), "recall": share(h, t), "f1": share(2 * h, p + t)}
        | {"rows": int(t)}
        for name, h, t, p in zip(names, hits, truth, predicted, strict=True)
    }

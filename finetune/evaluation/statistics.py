"""Metrics as statistics of row indices, which the bootstrap resamples (see ``intervals``)."""

from collections.abc import Callable

import numpy

from finetune.evaluation.decisions import Outputs, both
from finetune.evaluation.intervals import Array

# scikit-learn is imported inside functions: finetune predict does not need it.


def macro_f1(confusion: Array) -> float:
    """Mean F1 over the classes that occur; ``confusion`` (K, K) counts, rows are true classes."""
    hits, truth, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    occurs = truth + predicted > 0
    return float((2 * hits[occurs] / (truth + predicted)[occurs]).mean())


def average_precision(scores: Array, truth: Array) -> Callable[[Array], float]:
    """Average precision of one class, as a statistic of row indices: that of scikit-learn.

    Its rows are sorted once for all resamples, which takes a twentieth of the time.

    Args:
        scores: (N,) float, higher for rows of the class.
        truth: (N,) bool.
    """
    order = numpy.argsort(-scores, kind="stable")
    # Rows of the same score are found together.
    last = numpy.append(numpy.diff(scores[order]) != 0, True)
    right = truth[order]

    def precision(rows: Array) -> float:
        times = numpy.bincount(rows, minlength=len(order))[order]
        hits, found = (times * right).cumsum()[last], times.cumsum()[last]
        if not hits[-1]:
            return numpy.nan if truth.any() else 0.0
        gained = numpy.diff(hits, prepend=0)
        return float((gained * hits / numpy.maximum(found, 1)).sum() / hits[-1])

    return precision


def of_positive(logits: Array, labels: Array, positive: int) -> Callable[[Array], float]:
    """Average precision of one of two classes, as a statistic of row indices."""
    return average_precision(logits[:, positive] - logits[:, 1 - positive], labels == positive)


def labels_f1(truth: Array, predicted: Array) -> Callable[[Array], float]:
    """Mean F1 over labels, as a statistic of row indices; both arguments (N, K) bool."""
    hits, marks = truth & predicted, truth.astype(int) + predicted
    return lambda rows: float((2 * hits[rows].sum(0) / numpy.maximum(marks[rows].sum(0), 1)).mean())


def r2(labels: Array, predicted: Array) -> Callable[[Array], float]:
    """Coefficient of determination, as a statistic of row indices; both arguments (N,) float."""
    from sklearn.metrics import r2_score

    varies = numpy.ptp(labels) > 0

    def determination(rows: Array) -> float:
        if numpy.ptp(labels[rows]) == 0:
            return numpy.nan if varies else 0.0
        return float(r2_score(labels[rows], predicted[rows]))

    return determination


def correlation(
    labels: Array, predicted: Array, ranked: bool, undefined: float = numpy.nan
) -> Callable[[Array], float]:
    """Pearson's correlation, or Spearman's of ranks, as a statistic of row indices.

    Args:
        labels, predicted: (N,) float.
        undefined: what it is where a side is constant.
    """
    from scipy.stats import rankdata

    def statistic(rows: Array) -> float:
        pair = labels[rows], predicted[rows]
        if min(numpy.ptp(pair[0]), numpy.ptp(pair[1])) == 0:
            return undefined
        return float(numpy.corrcoef([rankdata(v) for v in pair] if ranked else pair)[0, 1])

    return statistic


def headline(
    problem_type: str, name: str, outputs: Outputs, labels: Array, positive: int
) -> Callable[[Array], float]:
    """Returns a metric that can be a headline as a statistic of row indices."""
    logits, decided = both(outputs)
    if problem_type == "regression":
        return r2(labels, logits.reshape(len(labels)))
    if problem_type == "multi_label_classification":
        return labels_f1(labels.astype(bool), decided > 0)
    predicted, k = decided.argmax(1), logits.shape[1]
    if name == "average_precision":
        return of_positive(logits, labels, positive)
    if name == "macro_f1":
        cells = labels * k + predicted
        return lambda rows: macro_f1(numpy.bincount(cells[rows], minlength=k * k).reshape(k, k))
    correct = predicted == labels
    return lambda rows: float(correct[rows].mean())


def of_predictions(
    problem_type: str, metric: str, labels: Array, predicted: Array
) -> Callable[[Array], float] | None:
    """Returns a metric as a statistic of row indices, from predictions instead of logits.

    Args:
        labels, predicted: (N, K) bool, or (N,) float for a regression.

    Returns:
        None for a metric that is not computed this way.
    """
    if metric == "r2":
        return r2(labels, predicted)
    if metric == "accuracy":
        right = (labels == predicted).all(1)
        return lambda rows: float(right[rows].mean())
    if metric == "macro_f1" and problem_type == "multi_label_classification":
        return labels_f1(labels, predicted)
    if metric == "macro_f1":
        k = labels.shape[1]
        cells = labels.argmax(1) * k + predicted.argmax(1)
        return lambda rows: macro_f1(numpy.bincount(cells[rows], minlength=k * k).reshape(k, k))
    return None

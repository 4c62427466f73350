"""What validation rows decide about a finished classifier, and what it is worth.

- A temperature that the logits are divided by, so that probabilities are as good as they say.
- A threshold of probability for each class, where 0.5 is not the best.
- The confidence from which on predictions are right often enough.
"""

from collections.abc import Mapping
from typing import Any

import numpy
from scipy.special import log_softmax, logit, softmax

from finetune.evaluation.intervals import Array, Metric, wilson

# The least and largest temperature that is looked for.
RANGE = (0.05, 20.0)
# The accuracy that a threshold of confidence is shown for.
ACCURACY = 0.95


Outputs = Array | tuple[Array, Array]


def both(outputs: Outputs) -> tuple[Array, Array]:
    """Returns a classifier's logits (N, K), and those by whose order or signs it decides.

    They are the same, unless thresholds were chosen: outputs are then a pair (see ``shifted``).
    """
    return outputs if isinstance(outputs, tuple) else (outputs, outputs)


def temperature(logits: Array, labels: Array) -> float:
    """Returns the temperature with the least log loss (Guo et al. 2017, section 4.2).

    Args:
        logits: (N, K) float.
        labels: (N,) int below K.
    """
    from scipy.optimize import minimize_scalar

    logits, rows = numpy.asarray(logits, numpy.float64), numpy.arange(len(labels))

    def log_loss(log: float) -> float:
        return float(-log_softmax(logits / numpy.exp(log), axis=1)[rows, labels].mean())

    found: Any = minimize_scalar(log_loss, bounds=numpy.log(RANGE), method="bounded")
    return float(numpy.exp(found.x))


def threshold(scores: Array, truth: Array, missed_cost: float | None = None) -> float:
    """Returns the threshold of probability above which a class is predicted best.

    It is in the middle between two rows' probabilities; of equally good ones the nearest to 0.5.

    Args:
        scores: (N,) probability of the class.
        truth: (N,) bool.
        missed_cost: cost of a missed row, where a false alarm costs 1; None for the best F1.
    """
    order = numpy.argsort(-scores, kind="stable")
    scores, truth = scores[order], truth[order]
    edges = numpy.concatenate([[1.0], scores, [0.0]])
    hits, predicted = numpy.concatenate([[0], truth.cumsum()]), numpy.arange(len(scores) + 1)
    missed, false = truth.sum() - hits, predicted - hits
    if missed_cost is None:
        value = 2 * hits / numpy.maximum(predicted + truth.sum(), 1)
    else:
        value = -(missed_cost * missed + false)
    # Rows of the same probability are on the same side.
    possible = edges[:-1] > edges[1:]
    middle = (edges[:-1] + edges[1:]) / 2
    best = numpy.flatnonzero(possible & (value == value[possible].max()))
    return float(middle[best[numpy.abs(middle[best] - 0.5).argmin()]])


def shifted(logits: Array, names: list[str], thresholds: Mapping[str, float]) -> Array:
    """Returns logits (N, K) by whose order, or signs, predictions are decided at the thresholds.

    Args:
        thresholds: probabilities by the name of the class; of two classes at most one has one.
    """
    out = numpy.array(logits, dtype=numpy.float64)
    for name, value in thresholds.items():
        out[:, names.index(name)] -= logit(value)
    return out


def sure_from(confidence: Array, correct: Array) -> float | None:
    """Returns the least confidence from which on ``ACCURACY`` of the rows are right.

    None where there is none.

    Args:
        confidence: (N,) probability of the prediction.
        correct: (N,) bool.
    """
    order = numpy.argsort(-confidence, kind="stable")
    right = correct[order].cumsum() / numpy.arange(1, len(order) + 1)
    enough = numpy.flatnonzero(right >= ACCURACY)
    return float(confidence[order[enough[-1]]]) if len(enough) else None


def answered(confidence: Array, correct: Array, least: float) -> dict[str, Any]:
    """Returns the share of the rows with at least that confidence, and their accuracy.

    The accuracy is None where there are no such rows.
    """
    sure = confidence >= least
    accuracy: Metric | None = None
    if sure.any():
        accuracy = wilson(int(correct[sure].sum()), int(sure.sum()))
    return {"confidence": least, "coverage": float(sure.mean()), "accuracy": accuracy}


def confidences(logits: Array, decided: Array) -> Array:
    """Returns the probability (N,) of each row's prediction; ``decided`` as of ``shifted``."""
    probabilities = softmax(numpy.asarray(logits, numpy.float64), axis=1)
    return probabilities[numpy.arange(len(logits)), decided.argmax(1)]

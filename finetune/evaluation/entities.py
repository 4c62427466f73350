"""Scores of entities in tagged words, by the definition of seqeval's default mode.

An entity is found if its type, its first and its last word are right. Precision, recall and F1
count all entities of all texts together (micro averages), as conlleval does. Intervals are over
texts, because the words and entities of one text are not independent.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from finetune.data import tags
from finetune.evaluation import intervals
from finetune.evaluation.intervals import RESAMPLES, Array, Metric, bootstrap


@dataclass(frozen=True)
class TaggedWords:
    """The words of one text with a model's outputs.

    Attributes:
        places: (W, 2) int, where the words are in the text, in characters.
        logits: (W, K) float, of each word's tags.
    """

    places: Array
    logits: Array

    def tags(self, names: list[str]) -> list[str]:
        """Returns the most likely tag of each word; ``names`` are those of the K tags."""
        return [names[k] for k in self.logits.argmax(1)]


def as_rows(items: Sequence[Any]) -> Array:
    """Returns items as an array (N,) of objects, which rows can be selected of."""
    out = numpy.empty(len(items), dtype=object)
    for i, item in enumerate(items):
        out[i] = item
    return out


def counts(rows: Sequence[Sequence[str]], truth: Sequence[Sequence[str]]) -> dict[str, Array]:
    """Counts the entities of N texts, by type: (N, 3) int, right, predicted and true ones.

    Args:
        rows, truth: predicted and true tags of each text's words.
    """
    found: dict[str, Array] = {}
    for i, (ours, theirs) in enumerate(zip(rows, truth, strict=True)):
        predicted, true = set(tags.entities(ours)), set(tags.entities(theirs))
        for place, part in enumerate((predicted & true, predicted, true)):
            for kind, _, _ in part:
                found.setdefault(kind, numpy.zeros((len(rows), 3), int))[i, place] += 1
    return dict(sorted(found.items()))


def precision(total: Array) -> float:
    """Returns the share of predicted entities that are right; 0 if none is predicted."""
    return float(total[0] / total[1]) if total[1] else 0.0


def recall(total: Array) -> float:
    """Returns the share of true entities that are found; 0 if there is none."""
    return float(total[0] / total[2]) if total[2] else 0.0


def f1(total: Array) -> float:
    """Returns the F1 of right, predicted and true entities (3,); 0 if there is none."""
    return float(2 * total[0] / (total[1] + total[2])) if total[1] + total[2] else 0.0


def score(
    outputs: Array,
    labels: Array,
    resamples: int = RESAMPLES,
    *,
    names: list[str],
) -> dict[str, Any]:
    """Scores the predicted tags of N texts.

    Args:
        outputs: (N,) of ``TaggedWords``.
        labels: (N,) of (W,) int, the true tags of each text's words.
        names: the K tags.
    """
    predicted, truth = _both(outputs, labels, names)
    by_type = counts(predicted, truth)
    every = _sum(by_type, len(outputs))
    right = numpy.array(
        [
            (sum(a == b for a, b in zip(ours, theirs, strict=True)), len(theirs))
            for ours, theirs in zip(predicted, truth, strict=True)
        ]
    )

    def measured(statistic: Callable[[Array], float]) -> Metric:
        return bootstrap(lambda rows: statistic(every[rows].sum(0)), len(outputs), resamples)

    def accuracy(rows: Array) -> float:
        return float(right[rows, 0].sum() / right[rows, 1].sum())

    totals = {kind: part.sum(0) for kind, part in by_type.items()}
    return {
        "metrics": {
            "entity_f1": measured(f1),
            "entity_precision": measured(precision),
            "entity_recall": measured(recall),
            "token_accuracy": bootstrap(accuracy, len(outputs), resamples),
        },
        "per_class": {
            kind: {
                "precision": precision(total) if total[1] else None,
                "recall": recall(total) if total[2] else None,
                "f1": f1(total),
                "entities": int(total[2]),
            }
            for kind, total in totals.items()
        },
    }


def difference(
    names: list[str],
    ours: Array,
    theirs: Array,
    labels: Array,
) -> Metric:
    """Returns by how much the entity F1 of ``ours`` exceeds that of ``theirs``, paired by text."""
    sums = [_sum(counts(*_both(each, labels, names)), len(labels)) for each in (ours, theirs)]
    first, second = (lambda rows, every=every: f1(every[rows].sum(0)) for every in sums)
    return intervals.difference(first, second, len(labels))


def _both(
    outputs: Array, labels: Array, names: list[str]
) -> tuple[list[list[str]], list[list[str]]]:
    truth = [[names[k] for k in row] for row in labels]
    return [each.tags(names) for each in outputs], truth


def _sum(by_type: dict[str, Array], rows: int) -> Array:
    return sum(by_type.values(), numpy.zeros((rows, 3), int))

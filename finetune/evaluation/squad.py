"""SQuAD's exact match and F1, the threshold for no answer, and baselines.

Exact match and F1 are those of SQuAD's evaluation script (Rajpurkar et al. 2016, 2018): the best
over a question's reference answers; case, punctuation, English articles and spaces do not count.
For a question without an answer both are 1 if none is predicted. The script of version 2.0 is
followed; that of 1.1 differs only where nothing is left of a reference answer.
"""

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy

from finetune.data.answer_spans import Ranked, Span
from finetune.evaluation.intervals import Metric, bootstrap

F1, EXACT = "answer_f1", "exact_match"
ANSWERED, ABSTAINED = "has_answer_f1", "no_answer_accuracy"
ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
# Where a sentence ends, for the baseline.
SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])|\n+")
# Candidates that a prediction lists.
LISTED = 5
MOST_WORDS, NEVER = "sentence with most words of the question", "no answer"


def normalized(text: str) -> str:
    """Returns a text without what does not count."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """Returns 1 if a prediction is one of the reference answers, else 0; none of them is ""."""
    return float(any(normalized(prediction) == normalized(r) for r in _given(references)))


def f1(prediction: str, references: Sequence[str]) -> float:
    """Returns the F1 of the words of a prediction and the reference nearest to it."""
    ours = normalized(prediction).split()
    return max(_overlap(ours, normalized(r).split()) for r in _given(references))


def _given(references: Sequence[str]) -> Sequence[str]:
    return [r for r in references if normalized(r)] or [""]


def _overlap(ours: list[str], theirs: list[str]) -> float:
    if not ours or not theirs:
        return float(ours == theirs)
    same = sum((Counter(ours) & Counter(theirs)).values())
    if not same:
        return 0.0
    precision, recall = same / len(ours), same / len(theirs)
    return (2 * precision * recall) / (precision + recall)


# --- answers of rows -----------------------------------------------------------------------------


# N tuples of texts, as ``references`` returns them.
Labels = Sequence[Sequence[str]] | numpy.ndarray


def as_rows(values: Iterable[Any]) -> numpy.ndarray:
    """Returns an array (N,) of any objects, so that it can be indexed by rows."""
    listed = list(values)
    out = numpy.empty(len(listed), dtype=object)
    out[:] = listed
    return out


def references(labels: Iterable[Any]) -> numpy.ndarray:
    """Returns the texts of the reference answers (N,) of labels (see ``data.questions``)."""
    return as_rows(tuple(answer["text"] for answer in label) for label in labels)


def decide(ranked: Ranked, threshold: float | None) -> Span | None:
    """Returns the predicted answer; None for no answer.

    Args:
        threshold: how much greater than the best answer's score the null score has to be; None if
            there always is an answer.
    """
    if not ranked.spans:
        return None
    best = ranked.spans[0]
    abstains = threshold is not None and ranked.null - best.score > threshold
    return None if abstains else best


def answer(ranked: Ranked, threshold: float | None) -> dict[str, Any]:
    """Returns a prediction with its characters in the context, its score, and the runners-up.

    Without an answer, ``prediction`` is "", and so are the characters from 0 to 0. Scores are
    shares of the best answers (``answer_spans.BEST``), by softmax of their logits.
    """
    spans = [asdict(span) for span in ranked.spans]
    if threshold is not None or not spans:
        none = {"text": "", "start": 0, "end": 0, "score": ranked.null}
        spans = sorted([*spans, none], key=lambda span: -span["score"])
    logits = numpy.array([span["score"] for span in spans])
    shares = numpy.exp(logits - logits.max())
    for span, share in zip(spans, shares / shares.sum(), strict=True):
        span["score"] = round(float(share), 6)
    chosen = decide(ranked, threshold)
    place = (chosen.start, chosen.end) if chosen else (0, 0)
    first = next(span for span in spans if (span["start"], span["end"]) == place)
    return {
        **{"prediction": first["text"], "start": first["start"], "end": first["end"]},
        **{"score": first["score"], "candidates": spans[:LISTED]},
    }


def texts(outputs: Iterable[Ranked], threshold: float | None) -> list[str]:
    """Returns the predictions as texts; "" for no answer."""
    found = (decide(ranked, threshold) for ranked in outputs)
    return [span.text if span else "" for span in found]


def best_threshold(outputs: Sequence[Ranked] | numpy.ndarray, labels: Labels) -> float:
    """Returns the threshold with the greatest mean F1, halfway between two rows.

    Args:
        outputs: of N rows.
        labels: their references (N,).
    """
    margins = numpy.array([r.null - r.spans[0].score if r.spans else numpy.inf for r in outputs])
    pairs = zip(texts(outputs, None), labels, strict=True)
    gains = numpy.array([f1(text, given) - f1("", given) for text, given in pairs])
    order = numpy.argsort(margins, kind="stable")
    order = order[numpy.isfinite(margins[order])]
    # Answering the k rows with the least margins, for every k; of equal margins all or none.
    margins, totals = margins[order], numpy.concatenate([[0.0], numpy.cumsum(gains[order])])
    if not len(margins):
        return 0.0
    edges = numpy.concatenate([[margins[0] - 2], margins, [margins[-1] + 2]])
    possible = edges[1:] > edges[:-1]
    k = int(numpy.argmax(numpy.where(possible, totals, -numpy.inf)))
    return float((edges[k] + edges[k + 1]) / 2)


def scores(predictions: Sequence[str], labels: Labels) -> numpy.ndarray:
    """Returns F1 and exact match (N, 2) of predictions with their references."""
    pairs = list(zip(predictions, labels, strict=True))
    return numpy.array([(f1(*pair), exact_match(*pair)) for pair in pairs]).reshape(-1, 2)


def score(
    predictions: Sequence[str], labels: Labels, resamples: int
) -> dict[str, dict[str, Metric]]:
    """Scores predictions, with intervals over questions.

    Where some questions have no answer, also the F1 of those that have one, and the share of the
    others for which none is predicted.
    """
    values = scores(predictions, labels)

    def mean(column: numpy.ndarray) -> Metric:
        return bootstrap(lambda rows: column[rows].mean(), len(column), resamples)

    found = {F1: mean(values[:, 0]), EXACT: mean(values[:, 1])}
    answered = numpy.array([any(map(normalized, given)) for given in labels])
    if 0 < answered.sum() < len(answered):
        found[ANSWERED] = mean(values[answered, 0])
        found[ABSTAINED] = mean(values[~answered, 1])
    return {"metrics": found}


def baselines(
    questions: Sequence[str], contexts: Sequence[str], labels: Labels
) -> dict[str, numpy.ndarray]:
    """Returns trivial answers (N,) to questions, by name.

    - the sentence of the context that has the most words of the question
    - no answer to any, where some have none
    """
    pairs = zip(questions, contexts, strict=True)
    found = {MOST_WORDS: as_rows(Ranked([_sentence(*pair)], -numpy.inf) for pair in pairs)}
    if not all(any(map(normalized, given)) for given in labels):
        found[NEVER] = as_rows(Ranked([], 0.0) for _ in labels)
    return found


def _sentence(question: str, context: str) -> Span:
    asked = set(normalized(question).split())
    breaks = [(m.start(), m.end()) for m in SENTENCE.finditer(context)]
    starts, ends = [0, *(b for _, b in breaks)], [*(a for a, _ in breaks), len(context)]
    places = [(a, b) for a, b in zip(starts, ends, strict=True) if context[a:b].strip()]

    def common(place: tuple[int, int]) -> int:
        return len(asked & set(normalized(context[slice(*place)]).split()))

    start, end = max(places, key=common)
    return Span(context[start:end], start, end, 0.0)

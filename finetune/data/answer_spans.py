"""From a model's logits to ranked answers.

The best spans of all windows of a question are ranked together by the sum of their two logits, as
BERT's script for SQuAD does (Devlin et al. 2019).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy
from datasets import Dataset

from finetune.data.context_windows import OUTSIDE

# Spans that are kept of a window, and of a question.
BEST = 20

Candidate = tuple[float, int, int]


@dataclass(frozen=True)
class Span:
    """A part of a context, from character ``start`` to before ``end``, and its score."""

    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Ranked:
    """The answers that a model finds to a question, best first, and the score of there being none.

    Scores are sums of two logits. The null score is the least of all windows.
    """

    spans: list[Span]
    null: float


def candidates(
    start: numpy.ndarray,
    end: numpy.ndarray,
    starts: numpy.ndarray,
    ends: numpy.ndarray,
    longest: int,
) -> list[Candidate]:
    """Returns the ``BEST`` spans of a window: score, first character, character after the last.

    Args:
        start, end: (T,) float, logits of an answer's first and last token.
        starts, ends: (T,) int, as ``encode`` returns them.
        longest: tokens that a span has at most.
    """
    inside = numpy.flatnonzero(starts != OUTSIDE)
    if not len(inside):
        return []
    width = min(longest, len(inside))
    padded = numpy.pad(end[inside], (0, width - 1), constant_values=-numpy.inf)
    # (T, width): from a token, to that many tokens after it.
    sums = start[inside, None] + numpy.lib.stride_tricks.sliding_window_view(padded, width)
    flat = sums.ravel()
    count = min(BEST, int(numpy.isfinite(flat).sum()))
    best = numpy.argsort(-flat, kind="stable")[:count]
    firsts, lengths = numpy.divmod(best, width)
    return [
        (float(flat[place]), int(starts[inside[a]]), int(ends[inside[a + b]]))
        for place, a, b in zip(best, firsts, lengths, strict=True)
    ]


def rank(windows: Iterable[tuple[list[Candidate], float]], context: str) -> Ranked:
    """Ranks the candidates of a question's windows; each window also has its null score.

    A span that several windows have counts with its best score. Blanks around a span are left out.
    """
    best: dict[tuple[int, int], float] = {}
    least = numpy.inf
    for found, null in windows:
        least = min(least, null)
        for score, start, end in found:
            text = context[start:end]
            place = (end - len(text.lstrip()), start + len(text.rstrip()))
            if place[0] < place[1]:
                best[place] = max(score, best.get(place, -numpy.inf))
    order = sorted(best, key=lambda place: (-best[place], place))[:BEST]
    spans = [Span(context[slice(*place)], *place, best[place]) for place in order]
    return Ranked(spans, float(least))


def decode(
    start: numpy.ndarray,
    end: numpy.ndarray,
    starts: numpy.ndarray,
    ends: numpy.ndarray,
    null: int,
    longest: int,
) -> tuple[list[Candidate], float]:
    """Returns a window's candidates and the score of no answer, from its logits (T,)."""
    found = candidates(start, end, starts, ends, int(longest))
    return found, float(start[null] + end[null])


def rank_all(
    windows: Dataset, logits: tuple[Any, Any], contexts: list[str], longest: int
) -> list[Ranked]:
    """Ranks the answers (N,) of a split's questions from its windows' logits (W, T), twice."""
    parts: list[list[Any]] = [[] for _ in contexts]
    for each, start, end in zip(windows, *logits, strict=True):
        row: Any = each
        starts, ends, count = numpy.array(row["starts"]), numpy.array(row["ends"]), row["length"]
        found = decode(start[:count], end[:count], starts, ends, row["null"], longest)
        parts[row["number"]].append(found)
    pairs = zip(parts, contexts, strict=True)
    return [rank(part, context) for part, context in pairs]

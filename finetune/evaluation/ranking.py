"""Scores rankings: NDCG, reciprocal rank and recall, each with an interval over the queries.

- NDCG@10 (Järvelin & Kekäläinen 2002) has gains of 1 for relevant items, and is 1 where these come
  first. The reciprocal rank is that of the first relevant one, 0 if it is not among the first 10.
- Recall@k is the share of a query's relevant items that are among the first k.
- Items of equal scores keep their order.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy

from finetune.evaluation import intervals
from finetune.evaluation.intervals import Array, Metric

NDCG, MRR, RECALL = "ndcg_at_10", "mrr_at_10", "recall_at_"
FIRST, DEPTH = 10, 100
CUTOFFS = (1, FIRST, DEPTH)
BM25 = "BM25"
# Queries whose scores of all items are in memory at once.
BLOCK = 256


class Ranked(NamedTuple):
    """The best items of a query, at most ``DEPTH``: their numbers (K,) int and scores (K,)."""

    items: Array
    scores: Array


def best(scores: Array) -> Ranked:
    """Returns the items with the highest scores (P,), best first."""
    order = numpy.argsort(-scores, kind="stable")[:DEPTH]
    return Ranked(order, scores[order])


def nearest(queries: Array, items: Array) -> Array:
    """Returns for each query's vector (Q, H) the items (P, H) with the highest dot products.

    An array of Q ``Ranked``.
    """
    blocks = (queries[i : i + BLOCK] @ items.T for i in range(0, len(queries), BLOCK))
    return as_rows(best(scores) for block in blocks for scores in block)


def as_rows(ranked: Iterable[Any]) -> Array:
    """Returns rankings as an array of objects, which can be indexed by rows."""
    given = list(ranked)
    rows = numpy.empty(len(given), object)
    for number, each in enumerate(given):
        rows[number] = each
    return rows


def bm25(queries: Sequence[str], items: Sequence[str]) -> Array:
    """Returns what ``nearest`` does, by BM25 of words (Robertson et al. 1994), as bm25s has it.

    English stop words do not count. What no query word occurs in comes last, in its order.
    """
    import bm25s

    nothing = numpy.zeros(len(items))
    tokens: Any = bm25s.tokenize(list(items), show_progress=False)
    if not any(map(len, tokens.ids)):
        # An index of no words has no average length.
        return as_rows(best(nothing) for _ in queries)
    index = bm25s.BM25()
    index.index(tokens, show_progress=False)
    words: Any = bm25s.tokenize(list(queries), return_ids=False, show_progress=False)
    return as_rows(best(index.get_scores(each) if each else nothing) for each in words)


def values(ranked: Sequence[Ranked], relevant: Sequence[set[int]]) -> dict[str, Array]:
    """Returns each metric of N queries (N,), by its name.

    Args:
        relevant: the numbers of the items that are right for each query, at least one.
    """
    hits = numpy.zeros((len(ranked), DEPTH))
    for row, each, right in zip(hits, ranked, relevant, strict=True):
        row[: len(each.items)] = [item in right for item in each.items.tolist()]
    counts = numpy.array([len(right) for right in relevant])
    first = hits[:, :FIRST]
    discounts = 1 / numpy.log2(numpy.arange(2, FIRST + 2))
    ideal = numpy.cumsum(discounts)[numpy.minimum(counts, FIRST) - 1]
    place = first.argmax(1)
    return {
        # A cumulative sum adds in the order of the ranks, as other programs do.
        NDCG: numpy.cumsum(first * discounts, 1)[:, -1] / ideal,
        MRR: first.max(1, initial=0) / (place + 1),
        **{f"{RECALL}{k}": hits[:, :k].sum(1) / counts for k in CUTOFFS},
    }


def score(
    ranked: Sequence[Ranked], relevant: Sequence[set[int]], resamples: int
) -> dict[str, dict[str, Metric]]:
    """Scores the rankings of N queries.

    Args:
        resamples: of the bootstrap; 0 gives intervals of zero width.
    """
    found = values(ranked, relevant)
    return {
        "metrics": {
            name: intervals.bootstrap(_mean(each), len(each), resamples)
            for name, each in found.items()
        }
    }


def difference(
    ours: Sequence[Ranked], theirs: Sequence[Ranked], relevant: Sequence[set[int]]
) -> Metric:
    """Returns by how much the NDCG of ``ours`` exceeds that of ``theirs`` on the same queries."""
    a, b = (values(each, relevant)[NDCG] for each in (ours, theirs))
    return intervals.difference(_mean(a), _mean(b), len(a))


def _mean(of_queries: Array) -> intervals.Statistic:
    return lambda rows: float(of_queries[rows].mean())

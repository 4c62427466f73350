"""Rankings: their scores are those of sentence-transformers and scikit-learn."""

import numpy
import pytest
from sklearn.metrics import ndcg_score

from finetune.evaluation import ranking
from finetune.evaluation.ranking import DEPTH, FIRST, MRR, NDCG, RECALL, Ranked


def made_up(
    draw: numpy.random.Generator, queries: int, items: int
) -> tuple[numpy.ndarray, list[set[int]]]:
    """Scores (Q, P), some of them equal, and the relevant items of each query."""
    scores = draw.integers(0, 40, (queries, items)) / 8
    counts = draw.integers(1, 15, queries)
    return scores, [set(draw.permutation(items)[:count].tolist()) for count in counts]


def test_1000_random_rankings_have_the_scores_of_sentence_transformers() -> None:
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    scores, relevant = made_up(numpy.random.default_rng(0), 1000, 120)
    ranked = [ranking.best(each) for each in scores]
    cutoffs = [1, FIRST, DEPTH]
    # Ids that sort as the numbers do: ties go to the smaller one.
    theirs = InformationRetrievalEvaluator(
        {str(q): "q" for q in range(1000)},
        {f"{i:03}": "p" for i in range(120)},
        {str(q): {f"{i:03}" for i in right} for q, right in enumerate(relevant)},
        mrr_at_k=[FIRST],
        ndcg_at_k=[FIRST],
        precision_recall_at_k=cutoffs,
    ).compute_metrics(
        [
            [
                {"corpus_id": f"{i:03}", "score": score}
                for i, score in zip(each.items.tolist(), each.scores.tolist(), strict=True)
            ]
            for each in ranked
        ]
    )
    ours = {name: float(each.mean()) for name, each in ranking.values(ranked, relevant).items()}
    assert ours[NDCG] == theirs["ndcg@k"][FIRST]
    assert ours[MRR] == pytest.approx(theirs["mrr@k"][FIRST], rel=1e-13)
    for k in cutoffs:
        assert ours[f"{RECALL}{k}"] == pytest.approx(theirs["recall@k"][k], rel=1e-13)


def test_ndcg_is_that_of_scikit_learn_where_no_scores_are_equal() -> None:
    draw = numpy.random.default_rng(1)
    scores = draw.permuted(numpy.tile(numpy.arange(30.0), (200, 1)), axis=1)
    _, relevant = made_up(draw, 200, 30)
    truth = numpy.array([[i in right for i in range(30)] for right in relevant], float)
    found = ranking.values([ranking.best(each) for each in scores], relevant)[NDCG]
    each = [ndcg_score(t[None], s[None], k=FIRST) for t, s in zip(truth, scores, strict=True)]
    assert found == pytest.approx(each, rel=1e-13)


def test_a_worked_example() -> None:
    ranked = [Ranked(numpy.array([4, 1, 0]), numpy.array([3.0, 2.0, 1.0]))]
    found = ranking.values(ranked, [{1, 7}])
    assert found[NDCG][0] == pytest.approx((1 / numpy.log2(3)) / (1 + 1 / numpy.log2(3)))
    assert found[MRR][0] == 0.5
    assert found["recall_at_1"][0] == 0
    assert found["recall_at_10"][0] == 0.5
    nothing = ranking.values(ranked, [{9}])
    assert {float(each[0]) for each in nothing.values()} == {0.0}


def test_intervals_are_over_queries() -> None:
    scores, relevant = made_up(numpy.random.default_rng(2), 60, 30)
    ranked = ranking.as_rows(map(ranking.best, scores))
    found = ranking.score(ranked, relevant, 200)["metrics"][NDCG]
    assert found["n"] == 60
    assert found["low"] < found["value"] < found["high"]
    perfect = ranking.as_rows(
        Ranked(numpy.array(sorted(right)), numpy.ones(len(right))) for right in relevant
    )
    apart = ranking.difference(perfect, ranked, relevant)
    assert apart["value"] == pytest.approx(1 - found["value"])
    assert apart["low"] > 0


def test_nearest_is_by_dot_product_in_blocks_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = numpy.random.default_rng(3)
    queries, items = draw.normal(size=(7, 4)), draw.normal(size=(150, 4))
    whole = ranking.nearest(queries, items)
    assert [each.items[0] for each in whole] == (queries @ items.T).argmax(1).tolist()
    assert [len(each.items) for each in whole] == [DEPTH] * 7
    monkeypatch.setattr(ranking, "BLOCK", 3)
    again = ranking.nearest(queries, items)
    assert all(numpy.array_equal(a.items, b.items) for a, b in zip(whole, again, strict=True))


def test_bm25_finds_shared_words_and_takes_a_query_without_words() -> None:
    items = ["the cat sat on a mat", "dogs bark at night", "a cat and another cat"]
    first, second, third = ranking.bm25(["cat", "night dogs", "the ?"], items)
    assert first.items.tolist()[2] == 1
    assert second.items.tolist()[0] == 1
    assert third.items.tolist() == [0, 1, 2]
    assert third.scores.tolist() == [0.0, 0.0, 0.0]
    (without,) = ranking.bm25(["cat"], ["of the", "?"])
    assert without.items.tolist() == [0, 1]

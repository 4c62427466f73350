"""BLEU, chrF and ROUGE are their libraries', also for resampled rows; edits are counted by hand."""

import random

import numpy
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from finetune.evaluation import generation
from finetune.evaluation.generation import Expected

WORDS = ["the", "a", "cat", "dog", "sat", "on", "mat", ",", ".", "Der", "Hund", "ging", "12.5"]
WORDS += ["%", "naïve", "猫", "quickly", "running", "runs"]


def text(draw: random.Random, most: int = 9) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(0, most)))


def corpus(seed: int, rows: int) -> tuple[list[str], list[list[str]]]:
    """Texts, some of them empty or right, with one to three targets each."""
    draw = random.Random(seed)
    targets = [[text(draw) or "cat" for _ in range(draw.choice([1, 1, 2, 3]))] for _ in range(rows)]
    texts = [draw.choice([text(draw), row[-1], row[0] + " dog"]) for row in targets]
    return texts, targets


def streams(targets: list[list[str]]) -> list[list[str | None]]:
    most = max(map(len, targets))
    return [[row[i] if i < len(row) else None for row in targets] for i in range(most)]


def test_bleu_and_chrf_are_those_of_sacrebleu_on_1000_random_corpora() -> None:
    for seed in range(1000):
        texts, targets = corpus(seed, random.Random(seed).randint(1, 6))
        rows = numpy.arange(len(texts))
        for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
            expected = metric.corpus_score(texts, streams(targets)).score
            assert generation.statistic(name, texts, targets)(rows) == expected


def test_a_resample_is_scored_like_the_corpus_of_its_rows() -> None:
    texts, targets = corpus(0, 40)
    draw = numpy.random.default_rng(0)
    for _ in range(20):
        rows = draw.integers(0, 40, 40)
        again, theirs = [texts[i] for i in rows], [targets[i] for i in rows]
        for name in ("bleu", "chrf", "rouge1", "rouge2", "rougel", "token_error_rate"):
            ours = generation.statistic(name, texts, targets)(rows)
            whole = generation.statistic(name, again, theirs)(numpy.arange(40))
            assert ours == pytest.approx(whole, abs=1e-12)


def test_rouge_is_the_mean_of_rouge_score_over_rows() -> None:
    texts, targets = corpus(1, 1000)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    found = [scorer.score_multi(row, each) for row, each in zip(targets, texts, strict=True)]
    for name, theirs in (("rouge1", "rouge1"), ("rouge2", "rouge2"), ("rougel", "rougeL")):
        ours = generation.statistic(name, texts, targets)(numpy.arange(1000))
        assert ours == float(numpy.mean([row[theirs].fmeasure for row in found]))


def test_signatures_say_how_many_targets_there_are() -> None:
    one = generation.score(["a cat"], [Expected("x", ["a cat"])], 0)["signatures"]
    assert one["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert one["chrf"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")
    expected = [Expected("x", ["a"]), Expected("y", ["a", "b"])]
    assert "nrefs:var" in generation.score(["a", "b"], expected, 0)["signatures"]["bleu"]


def test_edits_are_those_from_the_closest_target() -> None:
    expected = [Expected("read", ["R EH D", "R IY D"]), Expected("cat", ["K AE T"])]
    metrics = generation.score(["R IY D", "K T S"], expected, 100)["metrics"]
    # K AE T -> K T S: one left out, one added.
    assert metrics["token_error_rate"]["value"] == 2 / 6
    assert metrics["exact_match"]["value"] == 0.5
    assert metrics["token_error_rate"]["low"] == 0.0
    assert metrics["token_error_rate"]["high"] == 2 / 3


def test_texts_are_described() -> None:
    expected = [Expected("a b", ["c d"]), Expected("same", ["x"]), Expected("y", ["z"])]
    found = generation.describe(["a b c a b c", "same", ""], expected)
    assert found == {
        "words": pytest.approx(7 / 3),
        "target_words": pytest.approx(4 / 3),
        "repeated": 1 / 4,
        "empty": pytest.approx(1 / 3),
        "copies": pytest.approx(1 / 3),
    }


def test_a_difference_is_of_the_same_rows() -> None:
    texts, targets = corpus(3, 60)
    expected = [Expected("", row) for row in targets]
    right = [row[0] for row in targets]
    found = generation.difference("token_error_rate", right, texts, expected)
    assert found["high"] < 0
    alike = generation.difference("chrf", texts, texts, expected)
    assert alike == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 60}

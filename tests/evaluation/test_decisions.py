"""What validation decides is the best that could be decided on these rows."""

import numpy
import pytest
from scipy.special import expit, softmax

from finetune.evaluation import decisions, scoring, statistics

SINGLE = "single_label_classification"


def rows(count: int = 400, share: float = 0.2) -> tuple[numpy.ndarray, numpy.ndarray]:
    draw = numpy.random.default_rng(0)
    truth = draw.random(count) < share
    return expit(draw.normal(size=count) + 1.5 * truth - 1), truth


def test_the_temperature_undoes_overconfidence() -> None:
    draw = numpy.random.default_rng(1)
    logits = draw.normal(size=(4000, 3)) * 2
    labels = numpy.array([draw.choice(3, p=p) for p in softmax(logits, axis=1)])
    assert decisions.temperature(logits * 2.5, labels) == pytest.approx(2.5, rel=0.1)
    scored = scoring.score(SINGLE, logits * 2.5, labels, list("abc"), 0)["metrics"]
    t = decisions.temperature(logits * 2.5, labels)
    after = scoring.score(SINGLE, logits * 2.5 / t, labels, list("abc"), 0)["metrics"]
    assert scored["calibration_error"]["value"] > 0.1 > 0.03 > after["calibration_error"]["value"]
    assert scored["accuracy"] == after["accuracy"]


@pytest.mark.parametrize("cost", [None, 0.2, 1.0, 8.0])
def test_no_threshold_is_better_on_the_rows(cost: float | None) -> None:
    scores, truth = rows()
    scores[::7] = scores[0]

    def value(least: float) -> float:
        said = scores > least
        if cost is None:
            return 2 * (said & truth).sum() / (said.sum() + truth.sum())
        return -float(cost * (truth & ~said).sum() + (said & ~truth).sum())

    chosen = decisions.threshold(scores, truth, cost)
    assert value(chosen) == max(value(each) for each in [0.0, *scores, 1.0])
    assert chosen not in scores


def test_a_class_that_validation_lacks_keeps_a_threshold_in_the_middle() -> None:
    scores = numpy.array([0.1, 0.45, 0.58, 0.9])
    found = decisions.threshold(scores, numpy.zeros(4, bool))
    assert found == pytest.approx((0.45 + 0.58) / 2)


def test_shifted_logits_decide_at_the_thresholds() -> None:
    logits = numpy.random.default_rng(2).normal(size=(200, 2)) * 3
    binary = decisions.shifted(logits, ["a", "b"], {"b": 0.2})
    assert (binary.argmax(1) == 1).tolist() == (softmax(logits, axis=1)[:, 1] > 0.2).tolist()
    several = decisions.shifted(logits, ["a", "b"], {"a": 0.9, "b": 0.2})
    assert (several > 0).tolist() == (expit(logits) > [0.9, 0.2]).tolist()
    assert decisions.shifted(logits, ["a", "b"], {}).tolist() == logits.tolist()


def test_sure_from_is_the_least_confidence_that_is_right_often_enough() -> None:
    confidence = numpy.linspace(0.5, 1.0, 101)
    correct = numpy.arange(101) >= 40
    correct[90] = False
    least = decisions.sure_from(confidence, correct)
    assert least is not None
    kept = decisions.answered(confidence, correct, least)
    assert kept["accuracy"]["value"] >= 0.95
    below = decisions.answered(confidence, correct, confidence[confidence < least].max())
    assert below["accuracy"]["value"] < 0.95
    assert kept["coverage"] == pytest.approx((confidence >= least).mean())
    assert decisions.sure_from(confidence, numpy.zeros(101, bool)) is None
    assert decisions.answered(confidence, correct, 1.5)["accuracy"] is None


def test_average_precision_is_that_of_the_named_class() -> None:
    scores, truth = rows()
    # Rows of the same score, too.
    scores = scores.round(1).clip(0.1, 0.9)
    logits = numpy.stack([numpy.log(scores), numpy.log(1 - scores)], 1)
    labels = (~truth).astype(int)
    found = scoring.score(SINGLE, logits, labels, ["rare", "other"], 200, "rare")["metrics"]
    from sklearn.metrics import average_precision_score

    expected = average_precision_score(truth, scores)
    assert found["average_precision"]["value"] == pytest.approx(expected)
    assert found["average_precision"]["low"] < expected < found["average_precision"]["high"]
    draw = numpy.random.default_rng(5)
    statistic = statistics.average_precision(logits[:, 0] - logits[:, 1], truth)
    for _ in range(20):
        some = draw.integers(0, 400, 300)
        assert statistic(some) == pytest.approx(average_precision_score(truth[some], scores[some]))
    worse = numpy.stack([numpy.zeros(400), numpy.zeros(400)], 1)
    apart = scoring.difference(SINGLE, logits, worse, labels, "average_precision", 0)
    assert apart["value"] == pytest.approx(expected - truth.mean())
    assert apart["low"] > 0

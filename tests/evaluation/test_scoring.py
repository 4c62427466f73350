"""Scores compared with scikit-learn and scipy, and at their limits."""

import json
import warnings

import numpy
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn import metrics as sk

from finetune.evaluation import metrics, scoring

SINGLE, MULTI, NUMBER = (
    "single_label_classification",
    "multi_label_classification",
    "regression",
)


def values(scores: dict) -> dict[str, float]:
    return {name: metric["value"] for name, metric in scores["metrics"].items()}


@pytest.fixture
def classes():
    """Logits (300, 4) that are right on about half of the rows, labels (300,), names."""
    draw = numpy.random.default_rng(3)
    labels = draw.choice(4, 300, p=[0.5, 0.3, 0.15, 0.05])
    logits = draw.normal(size=(300, 4)) + 1.2 * numpy.eye(4)[labels]
    return logits, labels, ["a", "b", "c", "d"]


@pytest.fixture
def sets():
    """Logits (200, 3) and 0/1 labels (200, 3) of a multi-label problem, names."""
    draw = numpy.random.default_rng(4)
    labels = (draw.random((200, 3)) < [0.5, 0.2, 0.7]).astype(float)
    return draw.normal(size=(200, 3)) + 1.5 * (labels - 0.5), labels, ["a", "b", "c"]


@pytest.fixture
def numbers():
    """Predictions (200, 1) and targets (200,)."""
    draw = numpy.random.default_rng(5)
    labels = draw.normal(3, 2, 200)
    return (labels + draw.normal(size=200))[:, None], labels


# --- every problem type -------------------------------------------------------------------------


@pytest.mark.parametrize("problem", [SINGLE, MULTI, NUMBER])
def test_every_interval_covers_its_value_and_is_the_same_twice(problem, classes, sets, numbers):
    given = {SINGLE: classes, MULTI: sets, NUMBER: (*numbers, [])}[problem]
    scores = scoring.score(problem, *given)
    numpy.random.seed(1)
    assert scoring.score(problem, *given) == scores
    assert metrics.HEADLINE[problem] in scores["metrics"]
    for name, metric in scores["metrics"].items():
        assert metric["low"] < metric["value"] < metric["high"], name
        assert metric["n"] == len(given[0])
    json.dumps(scores, allow_nan=False)


def test_without_resamples_values_are_equal_and_intervals_have_no_width(classes):
    quick, full = scoring.score(SINGLE, *classes, resamples=0), scoring.score(SINGLE, *classes)
    assert values(quick) == values(full)
    assert quick["metrics"]["macro_f1"]["low"] == quick["metrics"]["macro_f1"]["high"]


# --- single label ------------------------------------------------------------------------------


def test_single_label_against_scikit_learn(classes):
    logits, labels, names = classes
    probabilities = scoring.probabilities(SINGLE, logits)
    predicted = logits.argmax(1)
    scores = scoring.score(SINGLE, logits, labels, names, resamples=0)
    found = values(scores)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
    assert found["log_loss"] == pytest.approx(sk.log_loss(labels, probabilities))
    brier = sk.brier_score_loss(labels, probabilities, labels=range(4), scale_by_half=False)
    assert found["brier"] == pytest.approx(brier)
    assert scores["confusion"] == sk.confusion_matrix(labels, predicted).tolist()
    wanted = sk.precision_recall_fscore_support(labels, predicted)
    for name, *parts in zip(names, *wanted, strict=True):
        row = scores["per_class"][name]
        assert [row["precision"], row["recall"], row["f1"], row["rows"]] == pytest.approx(parts)


def test_probabilities_sum_to_one_only_for_a_single_label(classes):
    logits = classes[0]
    assert scoring.probabilities(SINGLE, logits).sum(1) == pytest.approx(1)
    assert scoring.probabilities(MULTI, logits) == pytest.approx(1 / (1 + numpy.exp(-logits)))
    assert scoring.probabilities(NUMBER, logits) == pytest.approx(logits)


def test_perfect_and_worst_predictions():
    labels = numpy.array([0, 1, 2] * 10)
    right = 1000.0 * numpy.eye(3)[labels]
    found = scoring.score(SINGLE, right, labels, list("abc"))
    assert values(found) == {
        "accuracy": 1, "macro_f1": 1, "log_loss": 0, "brier": 0, "calibration_error": 0,
    }  # fmt: skip
    assert found["metrics"]["accuracy"]["low"] < 1
    wrong = 1000.0 * numpy.eye(3)[(labels + 1) % 3]
    assert values(scoring.score(SINGLE, wrong, labels, list("abc"))) == {
        "accuracy": 0, "macro_f1": 0, "log_loss": 1000, "brier": 2, "calibration_error": 1,
    }  # fmt: skip


def test_a_class_without_rows_or_predictions_is_undefined_and_not_averaged():
    labels = numpy.array([0, 1, 0, 1])
    found = scoring.score(SINGLE, numpy.eye(3)[labels], labels, list("abc"))
    assert found["metrics"]["macro_f1"]["value"] == 1
    assert found["per_class"]["c"] == {"precision": None, "recall": None, "f1": None, "rows": 0}


def test_calibration_error_of_a_constructed_case():
    # Ten rows at 0.8 of which 5 are right, ten at 0.6 of which 6: (0.3 * 10 + 0 * 10) / 20.
    sure = numpy.repeat([0.8, 0.6], 10)
    logits = numpy.log(numpy.stack([sure, 1 - sure], axis=1))
    labels = numpy.array([0] * 5 + [1] * 5 + [0] * 6 + [1] * 4)
    found = scoring.score(SINGLE, logits, labels, ["a", "b"])
    assert found["metrics"]["calibration_error"]["value"] == pytest.approx(0.15)
    assert found["reliability"]["confidence"] == pytest.approx([0.6, 0.8])
    assert found["reliability"]["accuracy"] == pytest.approx([0.6, 0.5])
    assert found["reliability"]["count"] == [10, 10]


# --- multi-label -------------------------------------------------------------------------------


def test_multi_label_against_scikit_learn(sets):
    logits, labels, names = sets
    predicted = (logits > 0).astype(float)
    scores = scoring.score(MULTI, logits, labels, names, resamples=0)
    found = values(scores)
    assert found["macro_f1"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
    assert found["micro_f1"] == pytest.approx(sk.f1_score(labels, predicted, average="micro"))
    assert found["exact_match"] == pytest.approx(sk.accuracy_score(labels, predicted))
    probabilities = scoring.probabilities(MULTI, logits)
    losses = [sk.log_loss(labels[:, k], probabilities[:, k]) for k in range(3)]
    assert found["log_loss"] == pytest.approx(numpy.mean(losses))
    wanted = sk.precision_recall_fscore_support(labels, predicted)
    for k, (name, *parts) in enumerate(zip(names, *wanted, strict=True)):
        row = scores["per_class"][name]
        assert [row["precision"], row["recall"], row["f1"], row["rows"]] == pytest.approx(parts)
        precision = sk.average_precision_score(labels[:, k], logits[:, k])
        assert row["average_precision"] == pytest.approx(precision)


def test_a_single_label_of_a_multi_label_problem_is_scored(sets):
    logits, labels, _ = sets
    found = scoring.score(MULTI, logits[:, :1], labels[:, :1], ["a"])
    wanted = sk.f1_score(labels[:, 0], logits[:, 0] > 0)
    assert found["metrics"]["macro_f1"]["value"] == pytest.approx(wanted)
    assert list(found["per_class"]) == ["a"]


def test_labels_without_positive_rows_have_an_f1_of_zero():
    found = scoring.score(MULTI, -numpy.ones((5, 2)), numpy.zeros((5, 2)), ["a", "b"])
    assert found["metrics"]["macro_f1"]["value"] == 0
    assert found["metrics"]["exact_match"]["value"] == 1
    assert found["per_class"]["a"] == {
        "precision": None, "recall": None, "f1": None, "rows": 0, "average_precision": None,
    }  # fmt: skip


# --- regression --------------------------------------------------------------------------------


@pytest.mark.parametrize("flat", [True, False], ids=["(N,)", "(N, 1)"])
def test_regression_against_scikit_learn_and_scipy(numbers, flat):
    logits, labels = numbers
    predicted = logits[:, 0]
    found = values(scoring.score(NUMBER, predicted if flat else logits, labels, [], resamples=0))
    assert found == pytest.approx(
        {
            "r2": sk.r2_score(labels, predicted),
            "rmse": sk.root_mean_squared_error(labels, predicted),
            "mae": sk.mean_absolute_error(labels, predicted),
            "pearson": pearsonr(labels, predicted)[0],
            "spearman": spearmanr(labels, predicted)[0],
        }
    )


def test_ties_have_their_mean_rank():
    labels = numpy.array([1.0, 1, 2, 3, 3, 5])
    predicted = numpy.array([2.0, 1, 1, 4, 3, 4])
    found = values(scoring.score(NUMBER, predicted, labels, [], resamples=0))
    assert found["spearman"] == pytest.approx(spearmanr(labels, predicted)[0])


@pytest.mark.parametrize("n", [2, 3, 5])
def test_few_rows_whose_resamples_are_constant_are_scored(n):
    labels = numpy.arange(n, dtype=float)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = scoring.score(NUMBER, labels[::-1].copy(), labels, [])
    assert found["metrics"]["r2"]["value"] < 0
    json.dumps(found, allow_nan=False)


def test_perfect_and_constant_numbers(numbers):
    labels = numbers[1]
    assert values(scoring.score(NUMBER, labels, labels, [])) == pytest.approx(
        {"r2": 1, "rmse": 0, "mae": 0, "pearson": 1, "spearman": 1}
    )
    constant = values(scoring.score(NUMBER, numpy.full(200, labels.mean()), labels, []))
    assert constant["r2"] == pytest.approx(0, abs=1e-12)
    assert "pearson" not in constant
    assert values(scoring.score(NUMBER, labels, numpy.ones(200), []))["r2"] == 0


def test_a_paired_difference_is_clear_where_two_intervals_overlap():
    labels = numpy.arange(400) % 2
    weak = numpy.eye(2)[numpy.where(numpy.arange(400) < 60, 1 - labels, labels)]
    strong = numpy.eye(2)[numpy.where(numpy.arange(400) < 45, 1 - labels, labels)]
    kind, names = "single_label_classification", ["a", "b"]
    apart = scoring.difference(kind, strong, weak, labels)
    assert apart["value"] == pytest.approx(15 / 400)
    assert apart["low"] > 0
    better, worse = (
        scoring.score(kind, logits, labels, names)["metrics"]["accuracy"]
        for logits in (strong, weak)
    )
    assert better["low"] < worse["high"]
    back = scoring.difference(kind, weak, strong, labels)
    assert back["value"] == -apart["value"]
    none = scoring.difference(kind, weak, weak, labels)
    assert (none["value"], none["low"], none["high"]) == (0, 0, 0)
    numbers = numpy.random.default_rng(0).normal(size=400)
    assert (
        scoring.difference("regression", numbers[:, None], 0 * numbers[:, None], numbers)["low"] > 0
    )
    sets = numpy.eye(2)[labels]
    assert scoring.difference("multi_label_classification", sets - 0.5, sets - 1, sets)["low"] > 0

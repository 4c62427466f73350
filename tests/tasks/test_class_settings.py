"""Rare classes: weights, focal loss, balanced epochs, thresholds, calibration, abstaining."""

import json
import re
from pathlib import Path

import numpy
import pytest
import torch
from scipy.special import softmax
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from finetune import distillation, recipe
from finetune.errors import UserError
from finetune.evaluation import decisions
from finetune.inference import prediction
from finetune.training.losses import ClassificationLoss
from tests.conftest import sentences, train, train_job, write_csv

SINGLE = "single_label_classification"


@pytest.fixture
def rare_recipe(tiny_recipe: Path) -> Path:
    """The tiny recipe on 100 negative reviews and 9 positive ones; the test has others.

    A few of the validation rows have the other label, so that no model is right about all.
    """
    rows = sentences(300, seed=1)
    negative, positive = ([r for r in rows if r[1] == n] for n in ("negative", "positive"))
    write_csv(Path("rare.csv"), negative[:100] + positive[:9])
    wrong = [(text, "positive") for text, _ in negative[100:103]]
    write_csv(Path("held.csv"), wrong + negative[103:120] + positive[9:24])
    write_csv(Path("test.csv"), negative[120:140] + positive[24:44])
    text = tiny_recipe.read_text("utf-8").splitlines()
    text[2] = "data: {train: rare.csv, validation: held.csv, test: test.csv}"
    tiny_recipe.write_text("\n".join(text) + "\n", encoding="utf-8")
    return tiny_recipe


def losses(run) -> list[float]:
    return [row["loss"] for row in run.history() if "loss" in row]


WEIGHTED = {
    "weights": ["--class_weights", "{positive: 7.5}"],
    "focal": ["--loss", "focal", "--focal_gamma", "1.5"],
    "both": ["--class_weights", "balanced", "--loss", "focal"],
}
# One batch for each step, and four without padding.
SHAPES = {
    "whole": ["--per_device_train_batch_size", "32", "--padding_free", "false"],
    "accumulated": ["--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "4"],
}


def test_the_loss_is_that_of_one_batch(rare_recipe: Path) -> None:
    def trained(name: str, shape: str, *flags: str) -> list[float]:
        once = ["--num_train_epochs", "1", "--output_dir", f"runs/{name}-{shape}"]
        return losses(train(rare_recipe, *once, *SHAPES[shape], *flags))

    plain = trained("plain", "whole")
    for name, flags in WEIGHTED.items():
        whole, accumulated = (trained(name, shape, *flags) for shape in SHAPES)
        assert len(whole) == 4
        assert accumulated == pytest.approx(whole, abs=1e-5), name
        assert max(abs(a - b) for a, b in zip(plain, whole, strict=True)) > 1e-2, name


def test_weights_and_focus_are_those_of_the_formulas() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(12, 3), torch.arange(12) % 3
    entropy = torch.nn.functional.cross_entropy
    weights = (0.5, 1.0, 4.0)
    loss = ClassificationLoss(SINGLE, 0.1, weights)
    expected = entropy(logits, labels, torch.tensor(weights), label_smoothing=0.1)
    assert torch.allclose(loss({"logits": logits}, labels), expected)
    p = logits.softmax(1)[torch.arange(12), labels]
    alpha = torch.tensor(weights)[labels]
    focal = ClassificationLoss(SINGLE, weights=weights, focal_gamma=2.0)
    expected = -(alpha * (1 - p) ** 2 * p.log()).sum() / alpha.sum()
    assert torch.allclose(focal({"logits": logits}, labels), expected)
    sets = torch.rand(12, 3).round()
    several = ClassificationLoss("multi_label_classification", weights=weights, focal_gamma=2.0)
    p = torch.where(sets > 0, logits.sigmoid(), 1 - logits.sigmoid())
    alpha = torch.where(sets > 0, torch.tensor(weights), torch.ones(3))
    expected = -(alpha * (1 - p) ** 2 * p.log()).mean()
    assert torch.allclose(several({"logits": logits}, sets), expected)
    sure = torch.tensor([[90.0, -90.0]], requires_grad=True)
    ClassificationLoss(SINGLE, focal_gamma=0.5)({"logits": sure}, torch.tensor([0])).backward()
    assert torch.isfinite(sure.grad).all()  # pyright: ignore


def test_balanced_weights_give_every_class_the_same_sum(rare_recipe: Path) -> None:
    _, job = train_job(rare_recipe, "--class_weights", "balanced", "--max_steps", "1")
    weights = job.loss.weights  # pyright: ignore
    assert weights == pytest.approx([109 / 200, 109 / 18])
    assert weights[0] * 100 == pytest.approx(weights[1] * 9)


def test_rare_classes_have_another_headline(rare_recipe: Path) -> None:
    run, job = train_job(rare_recipe)
    results = run.results()
    assert results["headline"] == "average_precision"
    assert job.notes[0] == (
        "positive has 8.3 % of the training rows: the headline is average precision of positive, "
        "not accuracy"
    )
    assert results["chosen"]["metric"] == "eval_average_precision"
    majority = results["baselines"]["majority class"]
    assert majority["average_precision"]["value"] == pytest.approx(0.5)
    assert majority["difference"]["value"] == pytest.approx(
        results["metrics"]["average_precision"]["value"] - 0.5
    )
    # A recipe with a published accuracy is compared with it.
    kept = rare_recipe.read_text("utf-8") + "reference: {metric: accuracy, value: 0.9}\n"
    Path("published.yaml").write_text(kept, encoding="utf-8")
    published = train(Path("published.yaml"), "--output_dir", "runs/published")
    assert published.results()["headline"] == "accuracy"
    # Its own choice of a checkpoint stays possible.
    by = train(rare_recipe, "--metric_for_best_model", "accuracy", "--output_dir", "runs/by")
    assert by.results()["chosen"]["metric"] == "accuracy"


def test_a_threshold_is_chosen_on_validation_and_used_everywhere(rare_recipe: Path) -> None:
    run, job = train_job(rare_recipe, "--threshold", "f1")
    results, rows = run.results(), run.predictions()
    (chosen,) = results["data"]["thresholds"].values()
    assert list(results["data"]["thresholds"]) == ["positive"]
    probability = numpy.stack(rows["probabilities"].tolist())[:, 1]
    expected = numpy.where(probability > chosen, "positive", "negative")
    assert list(rows["prediction"]) == list(expected)
    right = (expected == rows["label"]).mean()
    assert results["metrics"]["accuracy"]["value"] == pytest.approx(right)
    again = prediction.predict(run, [{"text": text} for text in rows["text"]])
    assert [row["prediction"] for row in again] == list(expected)
    # Validation decided it: no other threshold has a better F1 there.
    held = [{"text": text} for text in job.data.validation["text"]]
    scores = [row["probabilities"]["positive"] for row in prediction.predict(run, held)]
    truth = job.data.validation["label"].to_numpy() == 1

    def f1(least: float) -> float:
        said = numpy.array(scores) > least
        return 2 * (said & truth).sum() / max(said.sum() + truth.sum(), 1)

    assert f1(chosen) >= max(f1(each) for each in numpy.linspace(0, 1, 400))
    # Baselines decide as they did.
    majority = results["baselines"]["majority class"]["average_precision"]
    assert majority["value"] == pytest.approx(0.5)


def test_the_cost_of_a_miss_lowers_the_threshold(rare_recipe: Path) -> None:
    found = []
    for cost in ("0.05", "50"):
        flags = ["--threshold", "cost", "--missed_cost", cost, "--output_dir", f"runs/{cost}"]
        found.append(train(rare_recipe, *flags).results()["data"]["thresholds"]["positive"])
    assert found[1] < found[0]


@pytest.mark.parametrize("method", ["full", "head", "lora"])
def test_calibration_scales_the_saved_model(
    rare_recipe: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def fitted(logits: numpy.ndarray, labels: numpy.ndarray) -> float:
        given.append(labels.tolist())
        return 2.5

    monkeypatch.setattr(decisions, "temperature", fitted)
    plain = train(rare_recipe, "--method", method, "--output_dir", "runs/plain")
    flags = ["--method", method, "--calibrate", "--output_dir", "runs/calibrated"]
    run, job = train_job(rare_recipe, *flags)
    assert given == [job.data.validation["label"].tolist()]
    results, rows = run.results(), run.predictions()
    t = results["calibration"]["temperature"]
    assert t == 2.5
    before, after = (
        numpy.stack(each.predictions()["probabilities"].tolist()) for each in (plain, run)
    )
    logits = numpy.log(numpy.clip(before, 1e-6, 1))
    assert softmax(logits / t, axis=1) == pytest.approx(after, abs=1e-3)
    assert list(rows["prediction"]) == list(plain.predictions()["prediction"])
    for name, value in results["calibration"]["before"].items():
        assert value["value"] == pytest.approx(plain.results()["metrics"][name]["value"], abs=1e-4)
        assert value["low"] <= value["value"] <= value["high"]
    # The model folder gives the calibrated probabilities.
    model, tokenizer, _ = prediction.load(run)
    with torch.no_grad():
        logits = model(
            **tokenizer(list(rows["text"][:9]), padding=True, return_tensors="pt")
        ).logits
    assert logits.softmax(1).numpy() == pytest.approx(after[:9], abs=1e-4)
    if method == "full":
        loaded = AutoModelForSequenceClassification.from_pretrained(run.model)
        words = AutoTokenizer.from_pretrained(run.model)(rows["text"][0], return_tensors="pt")
        assert loaded(**words).logits.softmax(1)[0].tolist() == pytest.approx(after[0], abs=1e-4)


def test_abstaining_marks_unsure_predictions(rare_recipe: Path) -> None:
    run = train(rare_recipe, "--abstain", "0.9", "--learning_rate", "1e-3")
    results, rows = run.results(), run.predictions()
    confidence = numpy.stack(rows["probabilities"].tolist()).max(1)
    assert list(rows["abstains"]) == list(confidence < 0.9)
    first = results["abstain"][0]
    assert first["confidence"] == 0.9
    assert first["coverage"] == pytest.approx((confidence >= 0.9).mean())
    shown = prediction.predict(run, [{"text": rows["text"][0]}])[0]
    assert shown["abstains"] is bool(rows["abstains"][0])
    json.dumps(shown)


CONTRADICTIONS = [
    (["--class_weights", "balanced", "--sampler", "balanced"], "the balanced sampler weights"),
    (["--loss", "focal", "--label_smoothing_factor", "0.1"], "focal counts sure rows less"),
    (["--focal_gamma", "1"], "has no effect without loss: focal"),
    (["--missed_cost", "3"], "has no effect without threshold: cost"),
    (["--class_weights", "{positiv: 2}"], "did you mean 'positive'?"),
    (["--class_weights", "{positive: -1}"], "has to be above 0"),
    (["--method", "contrastive", "--loss", "focal"], "contrastive tuning learns from pairs"),
    (["--method", "contrastive", "--calibrate"], "contrastive tuning fits its head at"),
    (["--sampler", "balanced", "--problem_type", "regression"], "a regression has no classes"),
    (["--calibrate", "--problem_type", "multi_label_classification"], "needs one label a row"),
    (["--task", "fill-mask", "--threshold", "f1"], "threshold is for classification"),
]


@pytest.mark.parametrize(("flags", "message"), CONTRADICTIONS)
def test_contradictions_are_rejected(rare_recipe: Path, flags: list[str], message: str) -> None:
    read = recipe.load(rare_recipe, flags)
    with pytest.raises(UserError, match=re.escape(message)):
        distillation.builder(read)(read)


def test_decisions_need_validation_rows_and_two_classes(rare_recipe: Path) -> None:
    alone = rare_recipe.read_text("utf-8").replace("validation: held.csv,", "validation_size: 0,")
    Path("alone.yaml").write_text(alone, encoding="utf-8")
    for flag in ("--calibrate", "--threshold=f1", "--abstain=0.9"):
        with pytest.raises(UserError, match="is decided on validation rows"):
            train(Path("alone.yaml"), flag)
    rows = [(text, label if i % 3 else "mixed") for i, (text, label) in enumerate(sentences(90))]
    write_csv(Path("three.csv"), rows)
    three = alone.replace("train: rare.csv, validation_size: 0, test: test.csv", "train: three.csv")
    Path("three.yaml").write_text(three, encoding="utf-8")
    with pytest.raises(UserError, match="needs two classes or several labels"):
        train(Path("three.yaml"), "--threshold", "f1")

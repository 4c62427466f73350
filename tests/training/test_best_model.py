"""The best checkpoint: which metric chooses it, and in which direction."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from finetune import inference, recipe, run_directory
from finetune.data import corpus
from finetune.errors import UserError
from finetune.evaluation.metrics import MetricSpec
from finetune.tasks import text_classification
from finetune.training import runner
from finetune.training.arguments import best_model
from finetune.training.job import Job
from tests.conftest import sentences, write_csv


def chosen(headline: str, values: dict[str, Any], **extra: MetricSpec) -> tuple[str, bool]:
    read = cast(recipe.Recipe, SimpleNamespace(where=lambda key: f"r.yaml: {key}"))
    job = cast(
        Job,
        SimpleNamespace(
            headline=headline,
            extra_metrics={n: SimpleNamespace(spec=each) for n, each in extra.items()},
        ),
    )
    found = best_model(values, read, job)
    return found["metric_for_best_model"], found["greater_is_better"]


def test_the_headline_chooses_unless_the_recipe_names_a_metric() -> None:
    assert chosen("accuracy", {}) == ("eval_accuracy", True)
    assert chosen("bits_per_byte", {}) == ("eval_bits_per_byte", False)
    assert chosen("accuracy", {"metric_for_best_model": None}) == ("eval_accuracy", True)
    assert chosen("accuracy", {"metric_for_best_model": "brier"}) == ("brier", False)
    assert chosen("accuracy", {"metric_for_best_model": "eval_loss"}) == ("eval_loss", False)


def test_the_recipes_own_direction_wins() -> None:
    values = {"metric_for_best_model": "eval_loss", "greater_is_better": True}
    assert chosen("accuracy", values) == ("eval_loss", True)
    assert chosen("accuracy", {"greater_is_better": None}) == ("eval_accuracy", True)


def test_a_metric_of_unknown_direction_needs_one_from_the_recipe() -> None:
    spec = MetricSpec("f1", greater_is_better=None)
    values = {"metric_for_best_model": "eval_f1"}
    with pytest.raises(UserError, match=r"metric_for_best_model: .* set greater_is_better"):
        chosen("accuracy", values, f1=spec)
    assert chosen("accuracy", values | {"greater_is_better": True}, f1=spec) == ("eval_f1", True)


def test_an_unknown_metric_is_an_error_even_with_a_direction() -> None:
    with pytest.raises(UserError, match="did you mean 'accuracy'"):
        chosen("accuracy", {"metric_for_best_model": "acuracy", "greater_is_better": True})


@pytest.mark.parametrize("name", ["eval_rmse", "mae"])
def test_a_regression_keeps_the_epoch_of_least_error(
    tiny_recipe: Path, workdir: Path, name: str
) -> None:
    rows = [(text, str(len(text) / 10)) for text, _ in sentences(136)]
    write_csv(workdir / "reviews.csv", rows)
    # Steps so large that the error goes up and down.
    flags = ["--problem_type", "regression", "--learning_rate", "0.03", "--num_train_epochs", "5"]
    read = recipe.load(tiny_recipe, [*flags, "--metric_for_best_model", name])
    run = runner.train(read, text_classification.TASK.build)
    assert run is not None
    key = f"eval_{name.removeprefix('eval_')}"
    curve = {row["step"]: row[key] for row in run.history() if key in row}
    assert len(curve) == 5
    assert min(curve.values()) < max(curve.values())
    best = run.results()["chosen"]
    assert best["value"] == curve[best["step"]] == min(curve.values())
    assert error(run, tiny_recipe, name) == pytest.approx(min(curve.values()), abs=1e-4)


def error(run: run_directory.Run, path: Path, name: str) -> float:
    """The error of a run's saved model on the validation rows."""
    data = corpus.load(recipe.load(path, ["--problem_type", "regression"]).data).validation
    predictions = inference.predict(run, [{"text": text} for text in data["text"]])
    pairs = zip(predictions, data["label"], strict=True)
    errors = [each["prediction"] - label for each, label in pairs]
    if name == "mae":
        return sum(map(abs, errors)) / len(errors)
    return (sum(e * e for e in errors) / len(errors)) ** 0.5

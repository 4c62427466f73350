"""The best checkpoint: which metric chooses it, and in which direction."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy
import pytest
from transformers import Trainer, TrainerState, TrainingArguments

from finetune import inference, recipe, run_directory
from finetune.data import corpus
from finetune.errors import TrainingError, UserError
from finetune.evaluation import extra_metrics, metrics, scoring
from finetune.evaluation.built_in import BUILT_IN
from finetune.evaluation.metrics import MetricSpec
from finetune.tasks import classification, text_classification
from finetune.training import runner
from finetune.training.arguments import best_model
from finetune.training.job import Job
from tests.conftest import sentences, write_csv
from tests.evaluation import test_metrics


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


# --- every metric that a run can measure -----------------------------------------------------

ROWS = 60
# Tasks whose outputs are no arrays.
OTHER = {"token-classification", "question-answering", "text2text-generation"} | {
    *("embedding", "reranking", "sentence-similarity")
}


def quality(kind: str, good: float) -> tuple[Any, Any]:
    """Returns outputs (N, ...) and labels of a model that is the better the higher ``good`` is."""
    draw = numpy.random.default_rng(1)
    if kind == "single_label_classification":
        labels = draw.integers(0, 3, ROWS)
        return draw.normal(size=(ROWS, 3)) + good * numpy.eye(3)[labels], labels
    if kind == "multi_label_classification":
        labels = draw.integers(0, 2, (ROWS, 3))
        return draw.normal(size=(ROWS, 3)) + good * (2 * labels - 1), labels
    if kind == "regression":
        labels = draw.normal(size=ROWS)
        return (labels + draw.normal(size=ROWS) / good)[:, None], labels
    nats, right = draw.uniform(8, 9, ROWS) / good, (0.9 - 0.5 / good) * numpy.full(ROWS, 10.0)
    if kind == "masked-image-modeling":
        return numpy.stack([1 - 1 / (1 + good), nats[:1].mean()])[None].repeat(ROWS, 0), None
    last = right if kind == "fill-mask" else numpy.full(ROWS, 40.0)
    return numpy.stack([nats, numpy.full(ROWS, 10.0), last], 1), None


def measured(kind: str, good: float) -> dict[str, float]:
    """Returns every metric of ``quality``, built-in further ones included, and a loss."""
    if kind in OTHER:
        return {"loss": 1 / good, **test_metrics.scored(kind, good / (1 + good))}
    outputs, labels = quality(kind, good)
    extra: dict[str, Any] = {}
    if kind in BUILT_IN:
        extra = extra_metrics.load(list(BUILT_IN[kind]), kind, 3, "metrics")
        found = scoring.score(kind, outputs, labels, ["a", "b", "c"], 0)["metrics"]
        pair = classification.for_metrics(kind)(outputs, labels)
        found |= extra_metrics.measure(extra, *pair, 0)
    elif kind == "text-generation":
        found = scoring.language(outputs, 0)["metrics"]
    elif kind == "fill-mask":
        found = scoring.masked(outputs, 0)["metrics"]
    else:
        found = scoring.mean("explained_variance", outputs[:, 0], 0)["metrics"]
    return {"loss": 1 / good, **{name: each["value"] for name, each in found.items()}}


CASES = [
    (kind, name)
    for kind, names in metrics.MEASURED.items()
    for name in ("loss", *names, *BUILT_IN.get(kind, {}))
]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_the_best_evaluation_is_chosen_by_every_metric(kind: str, name: str) -> None:
    extra = {n: metrics.spec(n) for n in BUILT_IN.get(kind, {})}
    found, greater = chosen(metrics.HEADLINE[kind], {"metric_for_best_model": name}, **extra)
    args = TrainingArguments(
        metric_for_best_model=found, greater_is_better=greater, use_cpu=True, save_strategy="epoch"
    )
    trainer: Any = SimpleNamespace(args=args, state=TrainerState())
    for step, good in enumerate([1.5, 6.0, 2.0, 1.0, 4.0], 1):
        trainer.state.global_step = step
        values = {f"eval_{n}": value for n, value in measured(kind, good).items()}
        Trainer._determine_best_metric(trainer, values, None)
    assert trainer.state.best_global_step == 2


@pytest.mark.parametrize("name", ["f1", "roc_auc", "eval_F1"])
@pytest.mark.parametrize("headline", sorted(metrics.HEADLINE.values()))
def test_a_metric_that_is_not_measured_is_refused_with_those_that_are(
    headline: str, name: str
) -> None:
    with pytest.raises(UserError, match=f"metric_for_best_model .* is unknown; .*{headline}"):
        chosen(headline, {"metric_for_best_model": name})


def test_an_undefined_metric_counts_as_the_worst_and_is_said(
    tiny_recipe: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(text, str(len(text) / 10)) for text, _ in sentences(136)]
    write_csv(workdir / "reviews.csv", rows)

    def build(read: recipe.Recipe) -> Job:
        job = text_classification.TASK.build(read)
        kept, calls = job.score, []

        def score(outputs: Any, labels: Any, resamples: int) -> dict[str, Any]:
            calls.append(1)
            # The first evaluation is of a model that predicts the same for every row.
            same = 0 * outputs if len(calls) == 1 else outputs
            return kept(same, labels, resamples)

        job.score = score
        return job

    flags = ["--problem_type", "regression", "--metric_for_best_model", "pearson"]
    flags += ["--early_stopping_patience", "3", "--num_train_epochs", "3"]
    flags += ["--lr_scheduler_type", "reduce_lr_on_plateau"]
    run = runner.train(recipe.load(tiny_recipe, flags), build)
    assert run is not None
    shown = capsys.readouterr().err
    assert "step 6: pearson is undefined on the validation rows" in shown
    assert shown.count("is undefined") == 1
    curve = {row["step"]: row["eval_pearson"] for row in run.history() if "eval_pearson" in row}
    assert list(curve) == [12, 18]
    best = run.results()["chosen"]
    assert best["value"] == curve[best["step"]] == max(curve.values())


def test_a_metric_that_a_task_does_not_measure_is_one_line(tiny_recipe: Path) -> None:
    def build(read: recipe.Recipe) -> Job:
        job = text_classification.TASK.build(read)
        kept = job.score

        def score(*args: Any) -> dict[str, Any]:
            scores = kept(*args)
            del scores["metrics"]["brier"]
            return scores

        job.score = score
        return job

    with pytest.raises(TrainingError, match="brier is not measured; it can be eval_loss, eval_acc"):
        runner.train(recipe.load(tiny_recipe, ["--metric_for_best_model", "brier"]), build)


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

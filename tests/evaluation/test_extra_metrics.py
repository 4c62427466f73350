"""Metrics that a recipe names: built in, from a file, from the hub."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import evaluate
import numpy
import pytest
from sklearn import metrics as sk

from finetune import inference, recipe
from finetune.errors import UserError
from finetune.evaluation import built_in, extra_metrics, metrics
from finetune.report import tables
from finetune.tasks import (
    causal_lm,
    classification,
    masked_image_modeling,
    masked_lm,
    text_classification,
)
from finetune.training.job import Job
from tests.conftest import train

SINGLE, MULTI, NUMBER = "single_label_classification", "multi_label_classification", "regression"
MINE = """\
import evaluate
from datasets import Features, Value
from evaluate import Metric


class ErrorCount(evaluate.Metric):
    greater_is_better = False

    def _info(self):
        features = Features({"predictions": Value("int64"), "references": Value("int64")})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        wrong = sum(p != r for p, r in zip(predictions, references))
        return {"error_count": wrong, "ignored": 0.0}
"""


@pytest.fixture(autouse=True)
def metrics_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "metrics"))


def load(names: list[str], kind: str = SINGLE, classes: int = 3) -> dict[str, Any]:
    return extra_metrics.load(names, kind, classes, "r.yaml:4")


def error(names: list[str], kind: str = SINGLE) -> str:
    with pytest.raises(UserError) as caught:
        load(names, kind)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("r.yaml:4: ")
    return message


def rows(kind: str) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Predictions and references of 200 rows, about two thirds right."""
    draw = numpy.random.default_rng(8)
    if kind == NUMBER:
        references = draw.normal(size=200)
        return references + draw.normal(size=200), references
    shape = 200 if kind == SINGLE else (200, 3)
    references = draw.integers(0, 3 if kind == SINGLE else 2, shape)
    other = draw.integers(0, 3 if kind == SINGLE else 2, shape)
    return numpy.where(draw.random(shape) < 0.5, references, other), references


# --- built in ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SINGLE, MULTI, NUMBER])
def test_built_in_metrics_are_scikit_learns_with_bootstrap_intervals(kind: str) -> None:
    predictions, references = rows(kind)
    functions = {
        SINGLE: {
            "matthews_correlation": sk.matthews_corrcoef,
            "balanced_accuracy": sk.balanced_accuracy_score,
            "cohen_kappa": sk.cohen_kappa_score,
        },
        MULTI: {"hamming_loss": sk.hamming_loss},
        NUMBER: {"mse": sk.mean_squared_error, "max_error": sk.max_error},
    }[kind]
    expected = {name: function(references, predictions) for name, function in functions.items()}
    if kind != NUMBER:
        for name, function, average in (
            ("macro_precision", sk.precision_score, "macro"),
            ("macro_recall", sk.recall_score, "macro"),
            ("weighted_f1", sk.f1_score, "weighted"),
        ):
            expected[name] = function(references, predictions, average=average)
    names = list(built_in.BUILT_IN[kind])
    found = extra_metrics.measure(load(names, kind), predictions, references, 100)
    assert {name: metric["value"] for name, metric in found.items()} == pytest.approx(expected)
    for name, metric in found.items():
        # The maximum of a resample is never above that of all rows.
        assert metric["low"] < metric["value"] <= metric["high"], name
        assert metric.keys() == {"value", "low", "high", "n"}
        assert metric["n"] == 200
    assert extra_metrics.measure(load(names, kind), predictions, references, 100) == found


@pytest.mark.parametrize("kind", [SINGLE, MULTI, NUMBER])
def test_a_built_in_metric_is_a_metric_of_evaluate(kind: str) -> None:
    predictions, references = rows(kind)
    for name, cls in built_in.BUILT_IN[kind].items():
        metric = cls(config_name=kind, keep_in_memory=True)
        found = metric.compute(predictions=predictions, references=references)
        direct = metric._compute(predictions=predictions, references=references)
        assert found == pytest.approx(direct)
        assert list(direct) == [name]
        assert metrics.METRICS[name].greater_is_better is not None


def test_no_resamples_give_an_interval_of_no_width() -> None:
    found = extra_metrics.measure(load(["cohen_kappa"]), *rows(SINGLE), 0)["cohen_kappa"]
    assert found["low"] == found["value"] == found["high"]


# --- files -------------------------------------------------------------------------------------


@pytest.fixture
def mine(workdir: Path) -> Path:
    path = workdir / "mine.py"
    path.write_text(MINE, encoding="utf-8")
    return path


def test_a_file_defines_a_metric_with_its_direction(mine: Path) -> None:
    for entry in ("./mine.py", "mine.py", str(mine)):
        extra = load([entry])
        assert extra["error_count"].spec == metrics.MetricSpec(
            "error count", greater_is_better=False
        )
    predictions, references = rows(SINGLE)
    found = extra_metrics.measure(extra, predictions, references, 1000)["error_count"]
    wrong = (predictions != references).sum()
    assert found["value"] == wrong
    assert found["low"] < wrong < found["high"]
    assert found["resamples"] == extra_metrics.FOREIGN_RESAMPLES
    assert (
        "resamples" not in extra_metrics.measure(extra, predictions, references, 0)["error_count"]
    )


def test_greater_is_better_unless_the_class_says_otherwise(mine: Path) -> None:
    mine.write_text(MINE.replace("    greater_is_better = False\n", ""), encoding="utf-8")
    assert load(["mine.py"])["error_count"].spec.greater_is_better is True


BROKEN = {
    "no class": ("x = 1\n", "defines 0 subclasses of evaluate.Metric; one is needed"),
    "two classes": (MINE + "class B(ErrorCount):\n    pass\n", "defines 2 subclasses"),
    "not Python": ("class\n", "cannot be imported: SyntaxError: "),
    "fails at import": ("import no_such_module_x\n", "cannot be imported: ModuleNotFoundError: "),
    "direction is no bool": (MINE.replace("= False", "= 'no'"), "has to be True or False"),
    "cannot be computed": (MINE.replace("wrong =", "wrong = 1 / 0 #"), "ZeroDivisionError"),
    "several numbers": (MINE.replace('"error_count"', '"wrong"'), "returns wrong, ignored; one nu"),
    "no number": (MINE.replace("wrong,", "'many',"), "cannot be computed: ValueError: "),
    "name of ours": (MINE.replace("ErrorCount", "Accuracy"), "accuracy is measured already"),
    "name of another": (MINE.replace("ErrorCount", "Perplexity"), "rename the class"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_one_line_that_names_it(mine: Path, case: str) -> None:
    text, message = BROKEN[case]
    mine.write_text(text, encoding="utf-8")
    assert message in error(["mine.py"])
    assert "mine.py" in error(["mine.py"])


def test_an_undefined_metric_is_left_out_of_results_but_shown_in_training(mine: Path) -> None:
    mine.write_text(
        MINE.replace("wrong,", "wrong if len(references) < 100 else float('nan'),"),
        encoding="utf-8",
    )
    extra = load(["mine.py"])
    assert numpy.isnan(extra_metrics.measure(extra, *rows(SINGLE), 0)["error_count"]["value"])
    with pytest.warns(RuntimeWarning, match="All-NaN"):
        assert extra_metrics.measure(extra, *rows(SINGLE), 10) == {}


# --- the hub, and names ------------------------------------------------------------------------


def test_an_unknown_name_is_one_line_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    message = error(["mathews_correlation"])
    assert "did you mean 'matthews_correlation'?" in message
    assert "cannot be loaded from the hub" in message


def test_a_metric_of_the_hub_has_no_known_direction(mine: Path, monkeypatch) -> None:
    asked = []

    def from_hub(name: str, **options: Any) -> evaluate.Metric:
        asked.append((name, options["module_type"]))
        return load(["mine.py"])["error_count"].metric

    monkeypatch.setattr(evaluate, "load", from_hub)
    assert load(["owner/error_count"])["error_count"].spec.greater_is_better is None
    assert asked == [("owner/error_count", "metric")]


@pytest.mark.parametrize(
    ("names", "kind", "message"),
    [
        (["accuracy"], SINGLE, "accuracy is measured already; leave it out"),
        (["cohen_kappa", "cohen_kappa"], SINGLE, "cohen_kappa is measured already"),
        (["mse"], SINGLE, "mse is not defined for single_label_classification; it can be matth"),
        (["no/such.py"], SINGLE, "no/such.py: no such file"),
    ],
)
def test_a_name_that_does_not_fit_is_one_line(names: list[str], kind: str, message: str) -> None:
    assert message in error(names, kind)


# --- in a run ----------------------------------------------------------------------------------


def test_a_run_measures_shows_and_chooses_by_further_metrics(tiny_recipe: Path, mine: Path) -> None:
    with tiny_recipe.open("a") as file:
        file.write("metrics: [matthews_correlation, ./mine.py]\n")
    flags = ["--learning_rate", "0.03", "--num_train_epochs", "5"]
    run = train(tiny_recipe, *flags, "--metric_for_best_model", "error_count")
    curve = {r["step"]: r["eval_error_count"] for r in run.history() if "eval_error_count" in r}
    results = run.results()
    assert len(curve) == 5
    assert min(curve.values()) < max(curve.values())
    assert curve[results["chosen"]["step"]] == min(curve.values())
    found = results["metrics"]
    assert list(found)[-2:] == ["matthews_correlation", "error_count"]
    assert found["error_count"]["value"] == round(24 * (1 - found["accuracy"]["value"]))
    assert found["error_count"]["resamples"] == extra_metrics.FOREIGN_RESAMPLES
    json.dumps(results, allow_nan=False)
    shown = tables.summary(run)
    assert "Matthews correlation" in shown
    assert "error count" in shown
    assert recipe.load(run.folder / "recipe.yaml").metrics == ["matthews_correlation", "./mine.py"]
    # Predicting runs no code of the metric's file.
    mine.unlink()
    assert len(inference.predict(run, [{"text": "good film"}])) == 1


@pytest.mark.parametrize("kind", [SINGLE, MULTI, NUMBER])
def test_a_classifier_passes_class_indices_matrices_or_numbers(kind: str) -> None:
    draw = numpy.random.default_rng(9)
    logits = draw.normal(size=(50, 1 if kind == NUMBER else 3)).astype(numpy.float32)
    names = [] if kind == NUMBER else list("abc")
    labels: Any = draw.normal(size=50)
    if kind == SINGLE:
        labels = draw.integers(0, 3, 50)
    elif kind == MULTI:
        labels = (draw.random((50, 3)) < 0.5).astype(numpy.float32)
    extra = load(list(built_in.BUILT_IN[kind]), kind, len(names))
    scorer = classification.scorer({"problem_type": kind, "label_names": names})
    job = cast(Any, SimpleNamespace(score=scorer, extra_metrics=extra))
    job.for_metrics = classification.for_metrics(kind)
    found = Job.all_scores(job, logits, labels, 20)["metrics"]
    assert list(found) == [*metrics.MEASURED[kind], *built_in.BUILT_IN[kind]]
    if kind == SINGLE:
        recall = sk.recall_score(labels, logits.argmax(1), average="macro")
        assert found["balanced_accuracy"]["value"] == pytest.approx(recall)
    elif kind == MULTI:
        assert found["hamming_loss"]["value"] == pytest.approx(((logits > 0) != labels).mean())
    else:
        assert found["mse"]["value"] == pytest.approx(found["rmse"]["value"] ** 2)


def test_a_metric_is_checked_before_the_weights_are_loaded(tiny_recipe: Path, monkeypatch) -> None:
    monkeypatch.setattr(text_classification.pretrained, "load", None)
    for entry in ("no_such.py", "mse"):
        with pytest.raises(UserError, match=f"--metrics: {entry}"):
            train(tiny_recipe, "--metrics", f"[{entry}]")


@pytest.mark.parametrize(
    ("task", "text"),
    [
        (causal_lm, "language modelling takes no further metrics"),
        (masked_lm, "masked language modelling takes no further metrics"),
        (masked_image_modeling, "masked image modelling takes no further metrics"),
    ],
)
def test_tasks_without_labels_take_no_further_metrics(
    tiny_recipe: Path, task: Any, text: str
) -> None:
    with pytest.raises(UserError, match=f"^--metrics: {text}"):
        task.TASK.build(recipe.load(tiny_recipe, ["--metrics", "[matthews_correlation]"]))

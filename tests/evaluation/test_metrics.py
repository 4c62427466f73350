"""The table of metrics: complete, in the right direction, and cheap to import."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest

from finetune.errors import UserError
from finetune.evaluation import (
    baselines,
    built_in,
    entities,
    generation,
    metrics,
    ranking,
    scoring,
    squad,
)
from finetune.tasks import sentence_similarity

SINGLE, MULTI, NUMBER = "single_label_classification", "multi_label_classification", "regression"


def scored(kind: str, quality: float) -> dict[str, float]:
    """All metrics of a kind, for predictions that are better the larger ``quality`` is."""
    draw = numpy.random.default_rng(0)
    if kind == SINGLE:
        labels = draw.integers(0, 3, 300)
        logits = draw.normal(size=(300, 3)) + 10 * quality * numpy.eye(3)[labels]
        scores = scoring.score(kind, logits, labels, list("abc"), 0)
        predictions: Any = logits.argmax(1)
    elif kind == MULTI:
        labels = (draw.random((300, 3)) < 0.5).astype(int)
        logits = draw.normal(size=(300, 3)) + 10 * quality * (labels - 0.5)
        scores = scoring.score(kind, logits, labels, list("abc"), 0)
        predictions = (logits > 0).astype(int)
    elif kind == NUMBER:
        labels = draw.normal(size=300)
        predictions = labels + draw.normal(size=300) * (1 - quality)
        scores = scoring.score(kind, predictions, labels, [], 0)
    elif kind == "text-generation":
        return measured(scoring.language(numpy.tile([30 * (2 - quality), 20, 80], (9, 1)), 0))
    elif kind == "fill-mask":
        sums = numpy.tile([30 * (2 - quality), 20, 20 * quality], (9, 1))
        return measured(scoring.masked(sums, 0))
    elif kind == "token-classification":
        truth = draw.integers(0, 2, (40, 5))
        tags = numpy.where(draw.random((40, 5)) < quality, truth, 1 - truth)
        places = numpy.zeros((5, 2), int)
        words = [entities.TaggedWords(places, numpy.eye(2)[row]) for row in tags]
        names = ["O", "B-PER"]
        return measured(entities.score(entities.as_rows(words), truth, 0, names=names))
    elif kind == "question-answering":
        references = [["Ada"], [""]] * 40
        right = draw.random(80) < quality
        answers = [a[0] if ok else "Bob" for a, ok in zip(references, right, strict=True)]
        return measured(squad.score(answers, references, 0))
    elif kind == "sentence-similarity":
        truth = draw.normal(size=300)
        cosines = quality * truth + (1 - quality) * draw.normal(size=300)
        return measured(sentence_similarity._score(cosines[:, None], truth[:, None], 0))
    elif kind in {"embedding", "reranking"}:
        found = [ranking.Ranked(numpy.array([i]), numpy.ones(1)) for i in draw.random(80) > quality]
        return measured(ranking.score(found, [{0}] * 80, 0))
    elif kind == "text2text-generation":
        target = [*"abcdefghijklmnopqrs"]
        texts = [" ".join(word if draw.random() < quality else "x" for word in target)]
        expected = [generation.Expected("a", [" ".join(target)])]
        expected += [generation.Expected("b", ["b"])] * 20
        texts += ["b" if i < 20 * quality else "a" for i in range(20)]
        return measured(generation.score(texts, expected, 0))
    else:
        return measured(scoring.mean("explained_variance", numpy.full(9, quality), 0))
    found = measured(scores)
    for name, cls in built_in.BUILT_IN[kind].items():
        metric = cls(config_name=kind, keep_in_memory=True)
        found |= metric._compute(predictions=predictions, references=labels)
        assert metric.name == name
    return found


def measured(scores: dict[str, Any]) -> dict[str, float]:
    return {name: metric["value"] for name, metric in scores["metrics"].items()}


EVERY = [
    (kind, name)
    for kind, names in metrics.MEASURED.items()
    for name in (*names, *built_in.BUILT_IN.get(kind, ()))
]


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_the_direction_of_every_metric_is_that_of_better_predictions(kind: str, name: str) -> None:
    worse, better = scored(kind, 0.0), scored(kind, 0.9)
    assert (better[name] > worse[name]) == metrics.spec(name).greater_is_better
    assert better[name] != worse[name]


@pytest.mark.parametrize("kind", metrics.MEASURED)
def test_what_is_measured_is_what_the_table_lists_headline_first(kind: str) -> None:
    names = [n for n in scored(kind, 0.5) if n not in built_in.BUILT_IN.get(kind, ())]
    assert names == list(metrics.MEASURED[kind])
    assert metrics.HEADLINE[kind] == names[0]
    assert {*names, *built_in.BUILT_IN.get(kind, ())} <= metrics.METRICS.keys()


def test_a_loss_is_better_when_it_is_less() -> None:
    for name, spec in metrics.METRICS.items():
        if name.endswith(("loss", "error")):
            assert spec.greater_is_better is False


@pytest.mark.parametrize("prefix", ["", "eval_"])
@pytest.mark.parametrize(("kind", "name"), [*EVERY, *((kind, "loss") for kind in metrics.MEASURED)])
def test_a_checkpoint_can_be_chosen_by_every_metric(kind: str, name: str, prefix: str) -> None:
    extra = {n: metrics.METRICS[n] for n in built_in.BUILT_IN.get(kind, ())}
    found = metrics.chosen_by(prefix + name, metrics.HEADLINE[kind], extra, "r.yaml:3")
    assert found is metrics.METRICS[name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("eval_rsme", "r.yaml:3: metric_for_best_model 'rsme' is unknown; did you mean 'rmse'?"),
        (
            "accuracy",
            "r.yaml:3: metric_for_best_model 'accuracy' is unknown; it can be loss, mae, ",
        ),
    ],
)
def test_a_metric_that_is_not_measured_is_an_error(name: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        metrics.chosen_by(name, "r2", {}, "r.yaml:3")
    assert str(caught.value).startswith(message)


def test_a_metric_of_a_task_from_outside_is_chosen_once_it_is_in_the_table(monkeypatch) -> None:
    with pytest.raises(UserError, match="'comet' is unknown"):
        metrics.chosen_by("eval_comet", "comet", {}, "r.yaml")
    monkeypatch.setitem(metrics.METRICS, "comet", metrics.MetricSpec("COMET"))
    assert metrics.chosen_by("eval_comet", "comet", {}, "r.yaml").title == "COMET"


def test_titles_and_hub_names() -> None:
    assert metrics.spec("macro_f1").title == "macro F1"
    assert metrics.spec("my_own_metric") == metrics.MetricSpec("my own metric")
    assert metrics.hub_name("macro_f1") == "f1"
    assert metrics.hub_name("r2") == "r_squared"
    assert metrics.hub_name("accuracy") == "accuracy"


def imported(module: str) -> set[str]:
    code = f"import sys, {module}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_baselines_import_scikit_learn_only_when_they_are_fitted() -> None:
    # Importing the module to see would also import what the data package needs.
    text = Path(baselines.__file__).read_text(encoding="utf-8")
    assert text.count("    from sklearn") > 3
    assert "\nfrom sklearn" not in text
    assert "\nimport sklearn" not in text


def test_the_table_imports_no_numerical_library() -> None:
    heavy = {"torch", "transformers", "datasets", "evaluate", "sklearn", "scipy", "numpy", "pandas"}
    assert imported("finetune.evaluation.metrics") & heavy == set()


@pytest.mark.parametrize("module", ["scoring", "intervals", "extra_metrics"])
def test_predicting_needs_neither_scikit_learn_nor_statistics(module: str) -> None:
    assert (
        imported(f"finetune.evaluation.{module}") & {"sklearn", "scipy.stats", "evaluate"} == set()
    )

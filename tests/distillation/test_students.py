"""A student is an ordinary run, taught by another one that is a baseline in its results."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, pipeline

from finetune import cli, distillation, inference, recipe, run_directory
from finetune.data import corpus
from finetune.distillation.teacher import Teacher
from finetune.errors import UserError
from finetune.tasks import image_classification, text_classification
from tests.conftest import interrupted, sentences, train, write_csv

NAME = "teacher (runs/tiny/seed-0)"
SMALL = "{hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 32}"


@pytest.fixture
def teacher(tiny_recipe: Path) -> run_directory.Run:
    """A run that has learned the made-up reviews."""
    return train(tiny_recipe, "--num_train_epochs", "4", "--learning_rate", "5e-3")


def student(*flags: str, run: str = "runs/tiny", command: str = "distil") -> run_directory.Run:
    """Trains a student by its command."""
    cli.main([command, run, *flags])
    return run_directory.one(f"runs/tiny-{command}{'led' if command == 'distil' else 'd'}")


def losses(run: run_directory.Run) -> list[float]:
    return [row["loss"] for row in run.history() if "loss" in row]


def weights(run: run_directory.Run) -> dict[str, torch.Tensor]:
    return load_file(run.model / "model.safetensors")


def assert_same(a: run_directory.Run, b: run_directory.Run) -> None:
    assert losses(a) == losses(b)
    ours, theirs = weights(a), weights(b)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_student_has_its_teacher_as_a_baseline(
    teacher: run_directory.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = student("--layers", "1", "--hidden_weight", "1")
    results, before = run.results(), teacher.results()
    baseline = results["baselines"][NAME]
    assert baseline["accuracy"] == before["metrics"]["accuracy"]
    ours = results["metrics"]["accuracy"]["value"]
    difference = baseline["difference"]
    assert difference["value"] == pytest.approx(ours - baseline["accuracy"]["value"])
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert NAME in (run.folder / "report.html").read_text("utf-8")
    assert list(run.predictions()["id"]) == list(teacher.predictions()["id"])

    # An ordinary model of one layer, which other programs load.
    model = AutoModelForSequenceClassification.from_pretrained(run.model)
    assert len(model.bert.encoder.layer) == model.config.num_hidden_layers == 1
    rows = run.predictions()
    found = pipeline("text-classification", str(run.model))(list(rows["text"]))
    assert [answer["label"] for answer in found] == list(rows["prediction"])

    # Its recipe is the same run again, and what the teacher says is not computed a second time.
    monkeypatch.setattr(inference, "outputs", None)
    cli.main(["train", str(run.folder / "recipe.yaml"), "--output_dir", "again"])
    assert_same(run_directory.Run("again"), run)


def test_a_student_learns_from_its_teacher_alone(teacher: run_directory.Run) -> None:
    """With labels that are wrong, and no weight on them, it agrees with its teacher."""
    other = {"negative": "positive", "positive": "negative"}
    write_csv(Path("reviews.csv"), [(text, other[label]) for text, label in sentences(136)])
    flags = ["--layers", "1", "--num_train_epochs", "6", "--overwrite", "--eval_strategy", "no"]
    agreed = {}
    for weight in ("0", "1"):
        rows = student(*flags, "--save_strategy", "no", "--label_weight", weight).predictions()
        theirs = inference.predict(teacher, [{"text": text} for text in rows["text"]])
        same = [row["prediction"] for row in theirs] == rows["prediction"].to_numpy()
        agreed[weight] = same.mean()
    assert agreed["0"] > 0.9
    assert agreed["1"] < 0.5


def test_a_stopped_student_resumes_bit_for_bit(teacher: run_directory.Run) -> None:
    flags = ["--teacher", str(teacher), "--hidden_weight", "1", "--layers", "1"]
    read = recipe.load("tiny.yaml", [*flags, "--checkpoint", str(teacher)])
    build = distillation.builder(read)
    flags += ["--checkpoint", str(teacher)]
    whole = train(Path("tiny.yaml"), *flags, "--output_dir", "whole", build=build)
    halves = [*flags, "--output_dir", "halves"]
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(Path("tiny.yaml"), *halves, build=interrupted(build))
    resumed = train(Path("tiny.yaml"), *halves, build=build, resume=True)
    assert_same(resumed, whole)


def test_a_student_is_not_resumed_with_another_teacher(teacher: run_directory.Run) -> None:
    """The student starts from other weights, so that its base is the same."""
    read = recipe.load("tiny.yaml", ["--teacher", str(teacher), "--layers", "1"])
    build = distillation.builder(read)
    how: dict[str, Any] = {"build": build, "resume": True}
    flags = ["--teacher", str(teacher), "--layers", "1", "--output_dir", "halves"]
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(Path("tiny.yaml"), *flags, build=interrupted(build))
    changed = weights(teacher)
    changed["classifier.bias"] += 1
    save_file(changed, teacher.model / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="is of another run: teacher was "):
        train(Path("tiny.yaml"), *flags, **how)
    run = train(Path("tiny.yaml"), *flags, **how, allowed=["teacher"])
    assert run.is_finished


def test_a_student_of_random_weights_has_the_teachers_tokenizer(teacher: run_directory.Run) -> None:
    run = student("--into", "new:bert", "--layers", "1", "--config", SMALL)
    config = json.loads((run.model / "config.json").read_text("utf-8"))
    assert (config["num_hidden_layers"], config["hidden_size"]) == (1, 16)
    files = [each / "tokenizer.json" for each in (run.model, teacher.model)]
    vocabularies = [json.loads(f.read_text("utf-8"))["model"]["vocab"] for f in files]
    assert vocabularies[0] == vocabularies[1]


def test_unlabelled_texts_are_trained_with_what_the_teacher_says(
    teacher: run_directory.Run,
) -> None:
    tested = teacher.predictions()["text"].tolist()
    new = [text for text, _ in sentences(200, seed=5)]
    known = {text for text, _ in sentences(136)}
    new = [text for text in new if text not in known]
    Path("more.txt").write_text("\n".join([*tested, *new, "", new[0]]) + "\n", encoding="utf-8")
    flags = ["--teacher", str(teacher), "--unlabelled", "more.txt"]
    read = recipe.load("tiny.yaml", flags)
    job = distillation.builder(read)(read)
    assert len(job.data.train) == len(job.splits["train"]) == 96 + len(new)
    added = job.data.train.iloc[96:]
    assert added["text"].tolist() == new
    answers = [row["prediction"] for row in inference.predict(teacher, [{"text": t} for t in new])]
    assert [job.data.label_names[i] for i in added["label"]] == answers
    assert job.splits["train"]["labels"][96:] == added["label"].tolist()
    assert f"{len(new)} unlabelled texts, 24 others are in a split already" in job.notes
    # The teacher's logits stand beside their own rows.
    logits = numpy.array(job.splits["train"]["teacher_logits"][96:])
    assert logits.argmax(1).tolist() == added["label"].tolist()


def test_classes_in_another_order_are_those_of_the_same_name(teacher: run_directory.Run) -> None:
    read = recipe.load("tiny.yaml", ["--teacher", str(teacher)])
    data = corpus.load(read.data)
    turned = replace(data, label_names=data.label_names[::-1])
    ours, theirs = (
        Teacher(read, text_classification.TASK, each).outputs(data.test, layers=1)
        for each in (data, turned)
    )
    assert ours.shape == (24, 2 + 32)
    assert numpy.ptp(ours[:, :2], 1).min() > 0
    assert ours[:, [1, 0]].tolist() == theirs[:, :2].tolist()
    assert ours[:, 2:].tolist() == theirs[:, 2:].tolist()


def test_a_pruned_model_is_an_ordinary_run(teacher: run_directory.Run) -> None:
    run = student("--feed_forward", "24", command="prune")
    results = run.results()
    assert NAME in results["baselines"]
    assert results["cost"]["total_parameters"] < teacher.results()["cost"]["total_parameters"]
    model = AutoModelForSequenceClassification.from_pretrained(run.model)
    assert {layer.intermediate.dense.out_features for layer in model.bert.encoder.layer} == {24}
    assert results["metrics"]["accuracy"]["value"] > 0.8


def test_the_student_of_an_adapter_learns_all_its_weights(tiny_recipe: Path) -> None:
    train(tiny_recipe, "--method", "lora", "--r", "4")
    cli.main(["merge", "runs/tiny"])
    run = student("--layers", "1", "--into", "runs/tiny/seed-0/merged")
    results = run.results()
    assert results["method"] == "full"
    assert recipe.read(run.folder / "recipe.yaml").training["learning_rate"] == 5e-5
    assert NAME in results["baselines"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temperature", "3"], "tiny: distillation needs a teacher, for example --teacher RUN"),
        (["--teacher", "runs"], "runs: no such run directory"),
        (["--layers", "1", "--method", "lora"], "--method: a smaller or taught model needs full"),
        (["--layers", "1", "--task", "fill-mask"], "are for classification so far"),
        (
            ["--teacher", "runs", "--task", "image-classification", "--flip", "0.5"],
            "augmentation changes images every epoch",
        ),
    ],
)
def test_what_cannot_be_taught_is_an_error_before_anything_loads(
    tiny_recipe: Path, flags: list[str], message: str
) -> None:
    if "--flip" in flags:
        Path("runs").mkdir()
        Path("runs/results.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        distillation.builder(recipe.load(tiny_recipe, flags))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--split_seed", "3"], r"was trained on \d+ of the test rows, for example"),
        (["--label", "other"], "predicts negative, positive, and the data has x, y"),
        (
            ["--hidden_weight", "1", "--checkpoint", "new:bert", "--config", SMALL],
            "hidden states have 16 features and the teacher's 32",
        ),
        (["--unlabelled", "empty.txt"], "there is no text to label"),
        (["--unlabelled", "known.txt"], "known.txt has no text that the splits have not"),
    ],
)
def test_a_teacher_that_does_not_fit_is_an_error(
    teacher: run_directory.Run, flags: list[str], message: str
) -> None:
    rows = [(f"{text},{label}", "xy"[label == "positive"]) for text, label in sentences(136)]
    write_csv(Path("reviews.csv"), rows, "text,label,other")
    Path("empty.txt").write_text("\n", encoding="utf-8")
    Path("known.txt").write_text(sentences(1)[0][0] + "\n", encoding="utf-8")
    read = recipe.load("tiny.yaml", ["--teacher", str(teacher), *flags])
    with pytest.raises(UserError, match=message):
        distillation.builder(read)(read)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["distil", "runs/tiny"], "distil needs the size of the student, for example --layers 2"),
        (["prune", "runs/tiny"], "prune needs what to keep: --layers N, --heads N or"),
        (["distil", "runs/none", "--layers", "1"], "runs/none: no such run directory"),
        (["prune", "runs/none", "--layers", "1", "--minutes", "0"], "--minutes 0 has to be above"),
    ],
)
def test_a_command_without_what_it_needs_is_one_line(
    words: list[str], message: str, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_images_are_pruned_and_taught_by_a_run(workdir: Path) -> None:
    from tests.tasks.test_image_classification import ARCHITECTURES, paint, save

    paint(Path("photos"), 12)
    save(ARCHITECTURES["vit"], Path("vit"))
    text = """\
task: image-classification
model: {checkpoint: vit}
data: {train: photos, holdout: 9, validation_size: 6}
training: {max_steps: 2, use_cpu: true, per_device_train_batch_size: 8, logging_steps: 1}
"""
    Path("tiny.yaml").write_text(text, encoding="utf-8")
    train(Path("tiny.yaml"))
    flags = ["--heads", "1", "--feed_forward", "16", "--label_weight", "0.5"]
    run = student(*flags, "--hidden_weight", "1", command="prune")
    model: Any = image_classification.TASK.auto_model.from_pretrained(run.model)
    assert (model.config.num_attention_heads, model.config.head_dim) == (1, 16)
    assert NAME in run.results()["baselines"]

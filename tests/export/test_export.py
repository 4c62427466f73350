"""Exports answer as their runs do, and what is worse or cannot be exported is not kept."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageClassification, ViTConfig, ViTImageProcessorPil

from finetune import cli, inference, run_directory
from finetune.errors import UserError
from finetune.export import engine, proof
from finetune.run_directory import Export, Run
from tests.conftest import make_writer, sentences, train, write_csv
from tests.tasks.test_image_classification import SIZES
from tests.tasks.test_question_answering import NOT_OPINIONS, recipe_for


def pairs(path: Path) -> None:
    rows = [(text, text[::-1], label) for text, label in sentences(60)]
    lines = [",".join(row) for row in rows]
    path.write_text("\n".join(["text,second,label", *lines]) + "\n", encoding="utf-8")


def text_recipe(folder: Path, checkpoint: Path, data: str = "") -> Path:
    """A recipe for the tiny BERT; the texts have three to eleven words."""
    recipe = folder / "tiny.yaml"
    recipe.write_text(
        f'task: text-classification\nmodel: {{checkpoint: "{checkpoint}", max_length: 16}}\n'
        f"data: {{train: reviews.csv, holdout: 20, validation_size: 10{data}}}\n"
        "training: {max_steps: 2, learning_rate: 2.0e-3, use_cpu: true}\n",
        encoding="utf-8",
    )
    return recipe


def of_texts(folder: Path, bert: Path) -> Path:
    write_csv(folder / "reviews.csv", sentences(60))
    return text_recipe(folder, bert)


def of_pairs(folder: Path, bert: Path) -> Path:
    pairs(folder / "reviews.csv")
    return text_recipe(folder, bert, ", text_pair: second")


def of_numbers(folder: Path, bert: Path) -> Path:
    write_csv(folder / "reviews.csv", [(t, str(len(t))) for t, _ in sentences(60)])
    return text_recipe(folder, bert, ", problem_type: regression")


def of_masks(folder: Path, bert: Path) -> Path:
    recipe = of_texts(folder, bert)
    text = recipe.read_text(encoding="utf-8").replace("text-classification", "fill-mask")
    recipe.write_text(text, encoding="utf-8")
    return recipe


def of_documents(folder: Path, bert: Path) -> Path:
    write_csv(folder / "reviews.csv", sentences(60))
    recipe = text_recipe(folder, make_writer(folder / "writer"))
    text = recipe.read_text(encoding="utf-8").replace("text-classification", "text-generation")
    recipe.write_text(text.replace("max_length: 16", "max_length: 64"), encoding="utf-8")
    return recipe


def of_entities(folder: Path, bert: Path) -> Path:
    """Opinions are entities; some texts have two windows."""
    texts = [f"{a} {b}" for (a, _), (b, _) in zip(sentences(60), sentences(60, 1), strict=True)]
    rows = [
        {"tokens": words, "tags": ["O" if word in NOT_OPINIONS else "B-OPINION" for word in words]}
        for words in map(str.split, texts)
    ]
    lines = [json.dumps(row) for row in rows]
    (folder / "reviews.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    recipe = text_recipe(folder, bert, ", text: tokens, label: tags")
    text = recipe.read_text(encoding="utf-8").replace("text-classification", "token-classification")
    recipe.write_text(text.replace("reviews.csv", "reviews.jsonl"), encoding="utf-8")
    return recipe


def of_questions(folder: Path, bert: Path) -> Path:
    """Contexts have several windows, and some have no answer."""
    return recipe_for(folder, bert, without=40)


def of_images(folder: Path, bert: Path) -> Path:
    draw = numpy.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 190)):
        (folder / "squares" / name).mkdir(parents=True)
        for i in range(30):
            pixels = numpy.clip(level + draw.normal(0, 40, (24, 24, 3)), 0, 255)
            Image.fromarray(pixels.astype(numpy.uint8)).save(folder / f"squares/{name}/{i}.png")
    torch.manual_seed(0)
    vit = folder / "vit"
    AutoModelForImageClassification.from_config(ViTConfig(**SIZES)).save_pretrained(vit)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(vit)
    recipe = folder / "tiny.yaml"
    recipe.write_text(
        f'task: image-classification\nmodel: {{checkpoint: "{vit}"}}\n'
        "data: {train: squares, holdout: 20, validation_size: 10}\n"
        "augmentation: {translate: 0.1}\n"
        "training: {max_steps: 2, learning_rate: 2.0e-3, use_cpu: true}\n",
        encoding="utf-8",
    )
    return recipe


def export(run: Run, *words: str) -> dict[str, Any]:
    """Exports by the command and returns export.json."""
    cli.main(["export", str(run), *words])
    return run.exports()[0]


def error(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main(["export", *words])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    return message


def test_an_export_predicts_as_its_run_wherever_it_is_moved(
    workdir: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(of_texts(workdir, tiny_bert), "--max_steps", "40", "--learning_rate", "5e-3")
    # Otherwise the order of the rows would not show.
    assert run.predictions()["prediction"].nunique() == 2
    made = export(run, "--to", "onnx")
    assert "torch" in capsys.readouterr().out

    found = made["checked"]
    assert found["rows"] == 20
    assert 0 < found["largest_difference"] <= 1e-4
    assert found["difference"]["value"] == 0
    # The same rows, scored the same way, as when the run was tested.
    accuracy = run.results()["metrics"]["accuracy"]
    assert found["torch_metrics"]["accuracy"] == accuracy
    assert "onnx-fp32" in (run.model / "README.md").read_text(encoding="utf-8")

    moved = workdir / "elsewhere"
    (run.folder / "export" / "onnx-fp32").rename(moved)
    run.folder.rename(workdir / "gone")
    texts = ["the film was good", "", "a poor plot and the cast was awful , bad and poor"]
    cli.main(["predict", str(moved), *texts])
    ours = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    cli.main(["predict", str(workdir / "gone"), *texts])
    theirs = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["prediction"] for row in ours] == [row["prediction"] for row in theirs]
    assert ours[1]["prediction"] is None
    assert ours[0]["probabilities"] == pytest.approx(theirs[0]["probabilities"], abs=1e-4)

    # The README's own code gives the logits that the engine gives.
    processor = inference.load(Export(moved))[1]
    expected = engine.load(moved)(**processor(["A text."], return_tensors="pt"))
    assert numpy.allclose(printed(moved, "logits"), expected.logits, atol=1e-6)


def printed(made: Path, name: str) -> Any:
    """What the code of an export's README computes."""
    page = (made / "README.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0] + f"\nprint({name}.tolist())"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=made, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("make", "to", "name"),
    [(of_entities, "openvino", "logits"), (of_questions, "onnx", "end_logits")],
)
def test_entities_and_questions_are_answered_as_by_their_run(
    workdir: Path, tiny_bert: Path, make: Callable[[Path, Path], Path], to: str, name: str
) -> None:
    run = train(make(workdir, tiny_bert), "--max_steps", "12")
    made = export(run, "--to", to)
    found, results = made["checked"], run.results()
    assert 0 < found["largest_difference"] <= 1e-4
    assert found["rows"] == results["data"]["test"]
    # With the threshold for no answer that the run's validation rows have set.
    headline = results["headline"]
    assert found["metrics"][headline] == found["torch_metrics"][headline]
    assert found["torch_metrics"][headline] == results["metrics"][headline]
    folder = run.folder / "export" / made["name"]
    assert numpy.isfinite(printed(folder, name)).all()

    tested = run.predictions()
    columns = ["question", "context"] if name != "logits" else ["text", "words"]
    answers = inference.predict(Export(folder), tested[columns].to_dict("records"))
    assert answers
    for answer, theirs in zip(answers, tested["prediction"], strict=True):
        ours = answer["prediction"]
        if name == "logits":
            ours, theirs = ([(a["start"], a["label"]) for a in each] for each in (ours, theirs))
        assert ours == theirs


def test_a_lora_is_merged_and_openvino_keeps_full_precision(workdir: Path, tiny_bert: Path) -> None:
    run = train(of_texts(workdir, tiny_bert), "--method", "lora")
    found = export(run, "--to", "openvino")["checked"]
    assert found["engine"] == "OpenVINO, fp32"
    assert found["largest_difference"] <= 1e-5


@pytest.mark.slow
def test_images_are_exported_in_int8_by_training_rows(workdir: Path, tiny_bert: Path) -> None:
    run = train(of_images(workdir, tiny_bert))
    made = export(run, "--to", "onnx", "--precision", "int8", "--accept_loss")
    # More than rounding in full precision, and still the same model.
    assert 1e-4 < made["checked"]["largest_difference"] < 0.1


def test_what_cannot_be_exported_is_one_line(
    workdir: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(of_texts(workdir, tiny_bert), "--method", "prompt_tuning")
    message = error(capsys, str(run), "--to", "onnx")
    assert "prompt_tuning cannot be merged" in message
    write_csv(workdir / "reviews.csv", sentences(60, seed=1))
    run = train(of_texts(workdir, tiny_bert), "--output_dir", "runs/other")
    write_csv(workdir / "reviews.csv", sentences(60, seed=1))
    assert "have changed since the run" in error(capsys, str(run), "--to", "onnx")
    (workdir / "full").mkdir()
    (workdir / "full" / "file").touch()
    message = error(capsys, str(run), "--to", "onnx", "--output", "full")
    assert "holds other files" in message
    assert not run.exports()


def test_a_runtime_that_is_not_installed_is_one_line(
    workdir: Path,
    tiny_bert: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = train(of_texts(workdir, tiny_bert))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    message = error(capsys, str(run), "--to", "onnx")
    assert "pip install 'finetune-recipes[export]'" in message


@pytest.mark.slow
def test_nncf_reports_nothing_to_its_authors() -> None:
    code = "from finetune.export import formats; from nncf.telemetry import telemetry"
    code += "; print(type(telemetry))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "MagicMock" in done.stdout


def measured(low: float, high: float, **changed: Any) -> dict[str, Any]:
    found = {"largest_difference": 0.5, "largest_logit": 4.0}
    found["torch_metrics"] = {"accuracy": {"value": 0.9}, "bits_per_byte": {"value": 2.0}}
    return found | {"difference": {"value": (low + high) / 2, "low": low, "high": high}} | changed


def test_a_loss_of_more_than_a_point_is_rejected_unless_it_is_accepted() -> None:
    worse = measured(-0.05, -0.012)
    with pytest.raises(UserError, match=r"more than one point of accuracy, -3\.1"):
        proof.judge(worse, "accuracy", "int8", accept_loss=False)
    proof.judge(worse, "accuracy", "int8", accept_loss=True)
    proof.judge(measured(-0.05, -0.009), "accuracy", "int8", accept_loss=False)
    # For bits per byte less is better, and a point is one percent.
    proof.judge(measured(-0.05, -0.03), "bits_per_byte", "int8", accept_loss=False)
    proof.judge(measured(0.01, 0.03), "bits_per_byte", "int8", accept_loss=False)
    with pytest.raises(UserError, match="bits per byte"):
        proof.judge(measured(0.03, 0.05), "bits_per_byte", "int8", accept_loss=False)


@pytest.mark.parametrize("apart", [5e-4, float("nan")])
def test_other_logits_in_full_precision_are_rejected_even_with_accept_loss(apart: float) -> None:
    found = measured(0.0, 0.0, largest_difference=apart)
    with pytest.raises(UserError, match="another model"):
        proof.judge(found, "accuracy", "fp32", accept_loss=True)
    proof.judge(found | {"largest_difference": 3e-4}, "accuracy", "fp32", accept_loss=False)


MATRIX = {
    of_texts: ["full", "lora", "bottleneck", "head"],
    of_pairs: ["full", "lora", "bottleneck", "head"],
    of_images: ["full", "lora", "bottleneck", "head"],
    of_entities: ["full", "lora", "bottleneck", "head"],
    of_questions: ["full", "lora", "bottleneck", "head"],
    of_numbers: ["full"],
    of_masks: ["full"],
    of_documents: ["full", "lora", "bottleneck"],
}


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino"])
@pytest.mark.parametrize(("make", "method"), [(m, each) for m in MATRIX for each in MATRIX[m]])
def test_every_task_and_method_is_exported(
    workdir: Path, tiny_bert: Path, make: Callable[[Path, Path], Path], method: str, to: str
) -> None:
    run = train(make(workdir, tiny_bert), "--method", method)
    found = export(run, "--to", to)["checked"]
    print(make.__name__, method, to, found["largest_difference"], found["largest_logit"])
    assert found["largest_difference"] <= 1e-4
    assert found["rows"] == run.results()["data"]["test"]


REDUCED = [of_texts, of_images, of_entities, of_questions, of_documents]


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino"])
@pytest.mark.parametrize(
    ("make", "precision"),
    [*((make, each) for make in REDUCED for each in ("fp16", "int8")), (of_documents, "int4")],
)
def test_reduced_precision_is_smaller_and_close(
    workdir: Path, tiny_bert: Path, make: Callable[[Path, Path], Path], precision: str, to: str
) -> None:
    run = train(make(workdir, tiny_bert))
    made = export(run, "--to", to, "--precision", precision, "--accept_loss")
    found = made["checked"]
    print(make.__name__, precision, to, found["largest_difference"], found["largest_logit"])
    assert found["largest_difference"] < 0.3 * max(1, found["largest_logit"])
    assert run_directory.one_or_export(str(run.folder / "export" / made["name"]))

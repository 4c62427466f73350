"""Images: any checkpoint, any resolution, seeded changes, and a model that loads elsewhere."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageClassification,
    BeitConfig,
    ConvNextConfig,
    DeiTConfig,
    Dinov2Config,
    PreTrainedConfig,
    ResNetConfig,
    SwinConfig,
    ViTConfig,
    ViTImageProcessorPil,
    pipeline,
)

from finetune import cli, inference, recipe, run_directory
from finetune.data import sources
from finetune.errors import UserError
from finetune.inference import evaluation
from finetune.report import files
from finetune.tasks import image_classification
from finetune.training.losses import ClassificationLoss
from tests.conftest import train_job

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
SMALL = {"image_size": 32, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
ARCHITECTURES: dict[str, PreTrainedConfig] = {
    "vit": ViTConfig(**SIZES),
    "deit": DeiTConfig(**SIZES, architectures=["DeiTForImageClassification"]),
    "beit": BeitConfig(**SIZES, use_absolute_position_embeddings=True),
    "dinov2": Dinov2Config(**SIZES),
    "swin": SwinConfig(
        image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4
    ),
    "convnext": ConvNextConfig(
        image_size=32, num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], patch_size=2
    ),
    "resnet": ResNetConfig(**SMALL, layer_type="basic"),
}
COLOURS = {"blue": (40, 60, 200), "green": (40, 190, 60), "red": (210, 50, 40)}


def paint(folder: Path, each: int, seed: int = 0) -> None:
    """A folder of class folders: noisy squares of three colours."""
    draw = numpy.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(each):
            noise = draw.normal(0, 25, (24, 24, 3))
            pixels = numpy.clip(numpy.array(colour) + noise, 0, 255).astype(numpy.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


def save(config: PreTrainedConfig, folder: Path) -> Path:
    torch.manual_seed(0)
    AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(ARCHITECTURES["vit"], tmp_path_factory.mktemp("vit") / "tiny-vit")


@pytest.fixture
def path(workdir: Path, tiny_vit: Path) -> Path:
    """A recipe that trains the tiny ViT on 60 made-up images."""
    paint(workdir / "photos", 30)
    made = workdir / "images.yaml"
    made.write_text(
        f"""\
task: image-classification
model: {{checkpoint: "{tiny_vit}"}}
data: {{train: photos, holdout: 18, validation_size: 12}}
training:
  learning_rate: 2.0e-3
  per_device_train_batch_size: 12
  num_train_epochs: 2
  lr_scheduler_type: constant
  logging_steps: 1
  use_cpu: true
""",
        encoding="utf-8",
    )
    return made


trained = train_job


def losses(run: run_directory.Run) -> list[float]:
    return [row["loss"] for row in run.history() if "loss" in row]


@pytest.mark.parametrize("side", ["32", "48"])
@pytest.mark.parametrize("method", ["full", "lora", "bottleneck"])
def test_what_is_saved_answers_the_same(path: Path, method: str, side: str) -> None:
    run, job = trained(path, "--method", method, "--image_size", side)
    assert run.results()["metrics"]["accuracy"]["value"] > 0.8
    files = sorted(str(p) for p in Path("photos").rglob("*.png"))[::9]
    rows = [{"image": file} for file in files]
    read = recipe.load(path)
    expected = inference.outputs(job.model.eval(), job.processor, read, rows)
    assert expected.shape == (len(files), 3)
    found = inference.outputs(*inference.load(run), rows)
    assert numpy.array_equal(found, expected)
    if method == "full":
        classify = pipeline("image-classification", model=str(run.model))
        ours = inference.predict(run, rows)
        for said, mine in zip(classify(files), ours, strict=True):
            assert said[0]["label"] == mine["prediction"]
            assert said[0]["score"] == pytest.approx(
                mine["probabilities"][mine["prediction"]], abs=1e-5
            )


def test_position_embeddings_are_interpolated_as_transformers_does(path: Path) -> None:
    read = recipe.load(path, ["--image_size", "48"])
    model = image_classification.TASK.build(read).model.eval()
    plain = AutoModelForImageClassification.from_pretrained(read.model.checkpoint).eval()
    pixels = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        ours = model.base_model(pixels).last_hidden_state
        theirs = plain.base_model(pixels, interpolate_pos_encoding=True).last_hidden_state
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert model.config.image_size == 48


@pytest.mark.parametrize("side", ["32", "64"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_any_image_classifier_trains(path: Path, tmp_path: Path, name: str, side: str) -> None:
    folder = save(ARCHITECTURES[name], tmp_path / name)
    flags = ["--checkpoint", str(folder), "--image_size", side, "--max_steps", "2"]
    run, job = trained(path, *flags)
    rows = [{"image": "photos/red/0.png"}]
    expected = inference.outputs(job.model.eval(), job.processor, recipe.load(path), rows)
    assert numpy.array_equal(inference.outputs(*inference.load(run), rows), expected)


def test_a_new_model_learns_from_random_weights(path: Path) -> None:
    config = json.dumps(SIZES).replace('"', "")
    run, _ = trained(path, "--checkpoint", "new:vit", "--config", config)
    assert run.results()["metrics"]["accuracy"]["value"] > 0.8
    assert run.results()["checkpoint"]["name"] == "new:vit"
    classify = pipeline("image-classification", model=str(run.model))
    assert classify("photos/green/3.png")[0]["label"] == "green"


CHANGES = ["--rotate", "20", "--flip", "0.5", "--crop_area", "0.5", "--erase", "0.5"]


def test_changes_depend_on_seed_epoch_and_row_alone(path: Path) -> None:
    job = image_classification.TASK.build(recipe.load(path, CHANGES))
    rows = [job.splits["train"][i] for i in range(6)]
    collate: Any = job.collator
    first = collate(rows)["pixel_values"]
    assert torch.equal(collate(rows[::-1])["pixel_values"].flip(0), first)
    later = [{**row, "epoch": 1} for row in rows]
    assert not torch.equal(collate(later)["pixel_values"], first)
    plain = image_classification.TASK.build(recipe.load(path)).collator
    tested = [job.splits["test"][i] for i in range(6)]
    assert torch.equal(collate(tested)["pixel_values"], plain(tested)["pixel_values"])
    assert not torch.equal(plain(rows)["pixel_values"], first)


def test_workers_change_nothing(path: Path) -> None:
    curves = []
    for workers, live_on in (("0", "false"), ("2", "false"), ("1", "true")):
        flags = ["--dataloader_num_workers", workers, "--output_dir", f"runs/{workers}"]
        flags += ["--num_train_epochs", "3", "--dataloader_persistent_workers", live_on]
        curves.append(losses(trained(path, *CHANGES, *flags)[0]))
    assert curves[0] == curves[1] == curves[2]


def test_mixed_labels_train_and_plain_ones_are_tested(path: Path) -> None:
    run, job = trained(path, "--mixup", "0.4", "--cutmix", "1.0")
    assert all(numpy.isfinite(losses(run)))
    rows = [job.splits["train"][i] for i in range(6)]
    labels = job.collator(rows)["labels"]
    assert labels.shape == (6, 3)
    logits = torch.randn(6, 3)
    counted = torch.tensor(labels.numel())
    found = ClassificationLoss("single_label_classification")(
        {"logits": logits}, labels, num_items_in_batch=counted
    )
    expected = torch.nn.functional.cross_entropy(logits, labels)
    assert torch.allclose(found, expected)


def test_views_are_an_images_own_and_their_mean_answers(path: Path) -> None:
    read = recipe.load(path, [*CHANGES, "--test_views", "3"])
    job = image_classification.TASK.build(read)
    plain = image_classification.TASK.build(recipe.load(path))
    assert len(job.data.test) == 18
    assert len(job.splits["test"]) == 18 * 4
    assert len(job.splits["validation"]) == 12
    batch = job.collator([job.splits["test"][i] for i in range(8)])
    seen = batch["pixel_values"].view(2, 4, 3, 32, 32)
    once = plain.collator([plain.splits["test"][i] for i in range(2)])
    torch.testing.assert_close(seen[:, 0], once["pixel_values"])
    assert batch["labels"].tolist() == [
        label for label in once["labels"].tolist() for _ in range(4)
    ]
    different = {tuple(view.flatten().tolist()) for row in seen for view in row}
    assert len(different) == 8
    # Whatever it comes with.
    alone = job.collator([job.splits["test"][5]])["pixel_values"]
    torch.testing.assert_close(alone[0], seen[1, 1])

    rows = [{"image": image} for image in job.data.test["image"]]
    model = job.model.eval()
    found = inference.outputs(model, job.processor, read, rows)
    last = inference.outputs(model, job.processor, read, rows[-1:])
    numpy.testing.assert_allclose(last[0], found[-1], atol=1e-5)
    with torch.no_grad():
        expected = model(pixel_values=seen.flatten(0, 1)).logits.view(2, 4, 3).mean(1)
    numpy.testing.assert_allclose(found[:2], expected.numpy(), atol=1e-5)


def test_a_run_with_views_says_so_and_answers_as_it_was_tested(path: Path) -> None:
    flags = [*CHANGES, "--mixup", "0.2", "--max_steps", "2"]
    once, _ = trained(path, *flags)
    run, _ = trained(path, *flags, "--test_views", "2", "--output_dir", "runs/views")
    tested = run.predictions()
    assert list(tested["id"]) == list(once.predictions()["id"])
    probabilities = numpy.stack(tested["probabilities"])
    assert not numpy.allclose(probabilities, numpy.stack(once.predictions()["probabilities"]))
    said = inference.predict(run, [{"image": image} for image in tested["image"]][::-1])[::-1]
    again = [list(answer["probabilities"].values()) for answer in said]
    numpy.testing.assert_allclose(probabilities, again, atol=1e-5)
    results = run.results()
    assert results["metrics"]["accuracy"]["n"] == 18
    assert results["data"]["test_views"] == 2
    for each in (run, once):
        files.write(each)
    for text in (
        (run.folder / "report.html").read_text(encoding="utf-8"),
        (run.model / "README.md").read_text(encoding="utf-8"),
    ):
        assert "mean over it and 2 augmented views, as in finetune predict" in text
    assert "augmented views" not in (once.model / "README.md").read_text(encoding="utf-8")


def test_predict_names_every_file(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = trained(path)
    files = ["photos/red/0.png", "photos/blue/1.png"]
    capsys.readouterr()
    cli.main(["predict", str(run), *files])
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["image"] for row in said] == files
    assert [row["prediction"] for row in said] == ["red", "blue"]
    cli.main(["predict", str(run), "--file", "photos/green"])
    assert len(capsys.readouterr().out.splitlines()) == 30
    found = evaluation.evaluate(run, "photos", {})
    assert found["rows"] == 90
    assert found["overlap"]["rows"] == run.results()["data"]["train"]
    assert {"predicted right", "confidence", "labelled red"} <= {*found["drift"]}
    Path("broken.png").write_bytes(b"<html>")
    for name, message in [("none.png", "no such image file"), ("broken.png", "broken.png: ")]:
        with pytest.raises(SystemExit) as stop:
            cli.main(["predict", str(run), name])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_the_report_shows_the_images(path: Path) -> None:
    run, _ = trained(path, *CHANGES, "--max_steps", "1", "--learning_rate", "0.0")
    files.write(run)
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "epochs augments them" in page
    assert page.count("data:image/png;base64,") >= 2
    assert "<blockquote>" not in page
    assert "rows a second" in page
    results = run.results()
    assert {
        "majority class",
        "logistic regression on pixels",
        "3 nearest neighbours on pixels",
    } == {*results["baselines"]}
    assert "tokens_seen" not in results["cost"]


RECIPES = Path(__file__).parents[2] / "recipes"
HUB = [p for p in sorted(RECIPES.glob("*/*.yaml")) if p.match("vit-base*") or p.match("cifar10/*")]


@pytest.mark.parametrize("file", HUB, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_a_recipe_of_the_hub_runs_on_stand_ins(
    workdir: Path, tiny_vit: Path, monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    assert len(HUB) == 5
    commit = workdir / "0123456789abcdef0123456789abcdef01234567"
    names = ["airplane", "automobile", "bird"]
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    )
    for split, each, seed in (("train", 20, 0), ("test", 4, 1)):
        paint(workdir / split, each, seed)
        files = sorted((workdir / split).rglob("*.png"))
        images = [{"bytes": image.read_bytes(), "path": None} for image in files]
        rows = {"img": images, "label": [i // each for i in range(len(files))]}
        commit.mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(commit / f"{split}.parquet")
    monkeypatch.setattr(sources, "snapshot", lambda *_: commit)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", workdir / "cache")
    flags = ["--max_steps", "2", "--warmup_steps", "1", "--eval_strategy", "no"]
    flags += ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "1"]
    flags += ["--dataloader_num_workers", "0"]
    flags += ["--validation_size", "12", "--max_train_samples", "24", "--max_test_samples", "10"]
    if file.stem != "scratch":
        flags += ["--checkpoint", str(tiny_vit)]
    read = recipe.load(file)
    if read.model.image_size:
        # Another resolution than the checkpoint's, but a cheaper one.
        flags += ["--image_size", "48"]
    run, job = trained(file, *flags)
    results = run.results()
    assert results["data"]["test_is"].endswith(
        "official split" if file.parent.name == "cifar10" else "holdout"
    )
    assert job.splits["train"].num_rows == 24
    image = job.data.test["image"].iloc[0]
    found = inference.outputs(*inference.load(run), [{"image": image}])
    expected = inference.outputs(job.model.eval(), job.processor, read, [{"image": image}])
    assert numpy.array_equal(found, expected)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--checkpoint", "new:vitt"], "vit"),
        (["--checkpoint", "nowhere"], "preprocessor_config"),
        (["--mixup", "0.2", "--problem_type", "regression"], "mixup and cutmix blend classes"),
        (
            ["--mixup", "0.2", "--test_views", "2"],
            "test_views needs an augmentation that",
        ),
    ],
)
def test_what_cannot_work_is_refused(
    path: Path, tiny_vit: Path, flags: list[str], message: str
) -> None:
    if "nowhere" in flags:
        folder = Path("nowhere")
        folder.mkdir()
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_bytes((tiny_vit / name).read_bytes())
    if "regression" in flags:
        for i, name in enumerate(COLOURS):
            Path("photos", name).rename(Path("photos", str(i)))
    with pytest.raises(UserError, match=message) as refusal:
        image_classification.TASK.build(recipe.load(path, flags))
    assert "\n" not in str(refusal.value)

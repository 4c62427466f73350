"""Pretraining without labels, and the classifier that starts from it."""

from pathlib import Path

import numpy
import pytest
import torch
from transformers import AutoModelForPreTraining

from finetune import recipe
from finetune.errors import UserError
from finetune.evaluation import scoring
from finetune.report import files
from finetune.tasks import image_classification, masked_image_modeling
from tests.conftest import train_job

from .test_image_classification import losses, paint

ENCODER = (
    "hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 64, "
    "image_size: 24, patch_size: 4"
)
DECODER = (
    "decoder_hidden_size: 16, decoder_num_hidden_layers: 1, decoder_num_attention_heads: 2, "
    "decoder_intermediate_size: 32"
)


@pytest.fixture
def path(workdir: Path) -> Path:
    paint(workdir / "photos", 20)
    made = workdir / "mae.yaml"
    made.write_text(
        f"""\
task: masked-image-modeling
model: {{checkpoint: "new:vit_mae", config: {{{ENCODER}, {DECODER}}}}}
data: {{train: photos, holdout: 12, validation_size: 9}}
training:
  learning_rate: 3.0e-3
  per_device_train_batch_size: 13
  num_train_epochs: 30
  logging_steps: 1
  use_cpu: true
""",
        encoding="utf-8",
    )
    return made


def test_it_learns_to_paint_and_a_classifier_starts_from_it(path: Path) -> None:
    run, _ = train_job(path)
    folder = run.folder
    curve = losses(run)
    assert numpy.mean(curve[-3:]) < 0.6 * numpy.mean(curve[:3])
    results = run.results()
    explained = results["metrics"]["explained_variance"]
    assert 0.2 < explained["low"] < explained["value"] < explained["high"] <= 1
    files.write(run)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "their visible patches, and the model&#39;s reconstruction" in page
    assert "confidently wrong" not in page

    plain = AutoModelForPreTraining.from_pretrained(folder / "model")
    assert type(plain).__module__.startswith("transformers.")
    saved = plain.get_submodule("vit").state_dict()
    text = path.read_text(encoding="utf-8").replace(f", {DECODER}", "").replace(f"{ENCODER}", "")
    text = text.replace("masked-image-modeling", "image-classification")
    for place in (folder, folder.parent):
        after = path.with_name("after.yaml")
        after.write_text(text.replace("new:vit_mae", str(place)), encoding="utf-8")
        model = image_classification.TASK.build(recipe.load(after)).model
        weights = model.get_submodule("vit").state_dict()
        assert set(weights) == set(saved)
        assert len(weights) > 20
        assert all(torch.equal(weights[name], saved[name]) for name in weights)


def test_a_new_autoencoder_knows_where_its_patches_are(path: Path) -> None:
    model = masked_image_modeling.TASK.build(recipe.load(path)).model
    for name in ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"):
        positions = model.get_parameter(name)
        assert len(positions[0].unique(dim=0)) == positions.shape[1] == 37, name
        assert not positions.requires_grad


def test_a_folder_of_images_needs_no_classes(path: Path, workdir: Path) -> None:
    (workdir / "flat").mkdir()
    for file in (workdir / "photos").glob("*/*.png"):
        file.rename(workdir / "flat" / f"{file.parent.name}-{file.name}")
    run, _ = train_job(path, "--train", "flat", "--max_steps", "1")
    data = run.results()["data"]
    assert data["label_names"] == []
    assert data["train"] + data["validation"] + data["test"] == len(list(Path("flat").iterdir()))
    assert "label" not in run.predictions()


def test_what_is_hidden_depends_on_seed_epoch_and_row_alone(path: Path) -> None:
    job = masked_image_modeling.TASK.build(recipe.load(path))
    collate = job.collator
    assert isinstance(collate, masked_image_modeling.MaskCollator)
    rows = [job.splits["train"][i] for i in range(5)]
    first = collate(rows)["noise"]
    assert first.shape == (5, 36)
    assert torch.equal(collate(rows[::-1])["noise"].flip(0), first)
    assert len({tuple(row.tolist()) for row in first}) == 5
    tested = [job.splits["test"][i] for i in range(5)]
    assert torch.equal(collate(tested)["noise"], collate(tested)["noise"])
    assert not torch.equal(collate([{**row, "epoch": 3} for row in rows])["noise"], first)


def test_the_loss_is_transformers_own_and_colour_alone_explains_nothing(path: Path) -> None:
    for norm in ("false", "true"):
        config = f"{{{ENCODER}, {DECODER}, norm_pix_loss: {norm}}}"
        job = masked_image_modeling.TASK.build(recipe.load(path, ["--config", config]))
        batch = job.collator([job.splits["train"][i] for i in range(6)])
        inputs = {name: batch[name] for name in ("pixel_values", "noise")}
        with torch.no_grad():
            out = job.model(**inputs)
            theirs = super(type(job.model), job.model).forward(**inputs).loss
        # As the Trainer counts them, over all micro-batches.
        count = (batch["labels"] != -100).sum()
        ours = job.loss(out, batch["labels"], num_items_in_batch=count)
        assert float(ours) == pytest.approx(float(theirs), rel=1e-5)
        assert (out["logits"][:, 0] < 0.1).all()


def test_the_mean_has_an_interval() -> None:
    values = numpy.linspace(0, 1, 101)
    found = scoring.mean("x", values)["metrics"]["x"]
    assert found["value"] == pytest.approx(0.5)
    assert 0.4 < found["low"] < 0.5 < found["high"] < 0.6


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "lora"], "pretraining tunes all weights"),
        (["--mixup", "0.5"], "pretraining has none"),
        (["--test_views", "2", "--flip", "0.5"], "pretraining has none"),
        (["--checkpoint", "new:vit"], "starts from new:vit_mae"),
        (["--image_size", "27"], "do not divide into patches of 4"),
        (["--config", "{mask_rato: 0.5}"], "did you mean 'mask_ratio'"),
    ],
)
def test_what_cannot_work_is_refused(path: Path, flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        masked_image_modeling.TASK.build(recipe.load(path, flags))

"""Models that FSDP2 splits over processes train like whole ones, and resume on any number."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from finetune import run_directory
from finetune.errors import UserError
from finetune.recipe import packaged
from finetune.training import checkpoints
from tests.conftest import make_writer, train
from tests.training.test_processes import launch, losses

ENVIRONMENT = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
}
# Trains recipes one after the other; some stop in their second evaluation.
SEVERAL = """
import json, sys
import torch
from finetune import recipe, tasks
from finetune.training import runner, trainer
from tests.conftest import interrupted
kept = runner._save
def save(trainer, job, run):
    # The gathered weights, to compare those that are loaded with.
    model = trainer.accelerator.unwrap_model(trainer.model)
    whole = trainer.accelerator.get_state_dict(model)
    kept(trainer, job, run)
    if trainer.is_world_process_zero():
        torch.save(dict(whole), run.folder / "whole.pt")
runner._save = save
for words, stops, allowed in json.loads(sys.argv[1]):
    read = recipe.load(words[0], words[1:])
    build = tasks.find(read.task).build
    try:
        runner.train(read, interrupted(build) if stops else build, resume=True, allowed=allowed)
    except KeyboardInterrupt:
        assert stops
"""
EPOCHS = ["--num_train_epochs", "4", "--config", "{hidden_dropout_prob: 0.1}"]


@pytest.fixture
def writing(tiny_recipe: Path) -> Path:
    """A recipe that trains a tiny Llama on the texts of the tiny recipe."""
    make_writer(Path("llama"))
    text = tiny_recipe.read_text("utf-8").replace("text-classification", "text-generation")
    lines = text.splitlines()
    lines[1] = "model: {checkpoint: llama, max_length: 32}"
    lines[2] = "data: {train: reviews.csv, text: text, holdout: 24, validation_size: 16}"
    path = Path("writing.yaml")
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def sharded(count: int, monkeypatch: pytest.MonkeyPatch, *runs: Any) -> None:
    with monkeypatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        # The script imports this folder.
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
        launch(count, SEVERAL, json.dumps(runs))


@pytest.mark.slow
def test_a_split_model_has_the_losses_of_one_process_and_resumes_to_the_bit(
    tiny_recipe: Path, writing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, runs, alone = "--per_device_train_batch_size", [], {}
    steps = ["--max_steps", "20", "--save_strategy", "epoch"]
    for path in (tiny_recipe, writing):
        for method in ("full", "lora"):
            words = [str(path), *steps, "--method", method, "--output_dir"]
            name = f"{path.stem}-{method}"
            alone[name] = train(path, *words[1:], f"one/{name}", rows, "14")
            runs.append([[*words, f"two/{name}", rows, "7"], False, []])
    words = [str(tiny_recipe), *EPOCHS, rows, "8", "--output_dir"]
    runs += [[[*words, "whole"], False, []]]
    runs += [[[*words, "halves"], True, []], [[*words, "halves"], False, []]]
    sharded(2, monkeypatch, *runs)

    for name, one in alone.items():
        two = run_directory.Run(f"two/{name}")
        assert len(losses(two)) == 20
        assert losses(two) == pytest.approx(losses(one), abs=1e-5)
        assert two.results()["accelerate"]["distributed_type"] == "FSDP"
        found, expected = (r.results()["metrics"][r.results()["headline"]] for r in (two, one))
        assert found == pytest.approx(expected, abs=1e-5)
    for name, kind in (
        ("tiny", AutoModelForSequenceClassification),
        ("writing", AutoModelForCausalLM),
    ):
        loaded = kind.from_pretrained(f"two/{name}-full/model").state_dict()
        whole = torch.load(f"two/{name}-full/whole.pt", weights_only=True)
        assert loaded.keys() == whole.keys()
        assert all(torch.equal(loaded[key], whole[key]) for key in whole)

    whole, halves = (run_directory.Run(name) for name in ("whole", "halves"))
    assert halves.history() == whole.history()
    assert len(losses(whole)) == 24
    for path in whole.model.glob("*.safetensors"):
        assert path.read_bytes() == (halves.model / path.name).read_bytes()
    # Each process's parts are in the manifest; a part that changed is found.
    (last,) = checkpoints.candidates(halves.checkpoints)[:1]
    parts = sorted(p for p in last.rglob("shard-*.safetensors"))
    assert len(parts) == 4
    content = bytearray(parts[1].read_bytes())
    content[-1] ^= 1
    parts[1].write_bytes(content)
    with pytest.raises(checkpoints.InvalidCheckpoint, match="does not match its checksum"):
        checkpoints.verify(last)


@pytest.mark.slow
def test_a_split_model_resumes_on_other_numbers_of_processes(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, key = "--per_device_train_batch_size", "training.per_device_train_batch_size"
    words = ["--num_train_epochs", "4", "--output_dir"]
    one = train(tiny_recipe, *words, "one", rows, "12")
    for count in (4, 2, 1):
        given = [str(tiny_recipe), *words, "many", rows, str(12 // count)]
        sharded(count, monkeypatch, [given, count > 1, ["processes", key]])
    many = run_directory.Run("many")
    assert many.results()["accelerate"]["processes"] == 1
    assert len(losses(many)) == 32
    assert losses(many) == pytest.approx(losses(one), abs=1e-5)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--method", "adalora"], "method adalora; use full or lora"),
        (["--method", "head"], "method head; use full or lora"),
        (["--ema_decay", "0.9"], "ema_decay"),
        (["--layer_decay", "0.9"], "layer_decay"),
        (["--optim", "adafactor"], "optim adafactor; use adamw_torch"),
        (["--calibrate", "true"], "calibrate"),
        (["--method", "lora", "--init_lora_weights", "pissa"], "init_lora_weights"),
    ],
)
def test_what_does_not_work_split_is_rejected_before_weights_are_read(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], reason: str
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)

    def build(recipe: Any) -> Any:
        raise AssertionError("built")

    with pytest.raises(UserError, match=f"FSDP2 does not work with {reason}$"):
        train(tiny_recipe, *flags, build=build)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true", "a run on DeepSpeed could not be resumed"),
        ("FSDP_VERSION", "1", "FSDP1 is not offered; write fsdp_version: 2"),
        ("FSDP_CPU_RAM_EFFICIENT_LOADING", "true", "new heads without weights"),
    ],
)
def test_other_ways_to_split_a_model_are_rejected(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    for key, own in (ENVIRONMENT | {name: value}).items():
        monkeypatch.setenv(key, own)
    with pytest.raises(UserError, match=reason):
        train(tiny_recipe)


def test_the_launch_file_asks_for_what_is_tested() -> None:
    text = (packaged.folder() / "launch" / "fsdp2.yaml").read_text("utf-8")
    for line in ("fsdp_version: 2", "fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP"):
        assert line in text

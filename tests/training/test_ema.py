"""The EMA: its values, its use in evaluations and the saved model, and resumed runs."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from finetune import inference, recipe, run_directory
from finetune.data import corpus
from finetune.errors import UserError
from finetune.evaluation import scoring
from finetune.tasks import text_classification
from finetune.training import ema, runner
from tests.conftest import interrupted, train

EMA = ["--ema_decay", "0.8"]
EVERY_STEP = ["--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "50"]
EVERY_STEP += ["--eval_strategy", "no"]
LAST = ["--load_best_model_at_end", "false", "--save_total_limit", "9"]


def checkpoints(run: run_directory.Run) -> list[Path]:
    found = run.checkpoints.glob("checkpoint-*")
    return sorted(found, key=lambda folder: int(folder.name.rpartition("-")[2]))


def log_loss(run: run_directory.Run, path: Path) -> float:
    """Returns the log loss of the run's model on the validation rows, through ``inference``."""
    data = corpus.load(recipe.load(path).data).validation
    rows = [{"text": text} for text in data["text"]]
    found = inference.outputs(*inference.load(run), rows)
    labels = numpy.array(data["label"].tolist())
    scores = scoring.score("single_label_classification", found, labels, ["a", "b"], 0)
    return scores["metrics"]["log_loss"]["value"]


def test_the_decay_warms_up_and_frozen_weights_and_buffers_stay() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model[0].bias.requires_grad = False
    average = ema.EMA(model, 0.25)
    expected: dict[str, torch.Tensor] = {}
    unused: Any = None
    for step in range(6):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter))
        model(torch.randn(8, 3))
        # The EMA starts with the first step's weights, not the random start; then 2/11, 3/12, 0.25.
        decay = min(0.25, (1 + step) / (10 + step)) if step else 0.0
        average.on_step_end(unused, unused, unused)
        for name, value in model.named_parameters():
            before = expected.get(name, value.detach())
            expected[name] = decay * before + (1 - decay) * value.detach()
    raw = {name: value.clone() for name, value in model.state_dict().items()}
    with average.in_place():
        state = model.state_dict()
        for name in ("0.weight", "1.weight", "1.bias"):
            assert torch.allclose(state[name], expected[name], atol=1e-6)
            assert not torch.equal(state[name], raw[name])
        for name in ("0.bias", "1.running_mean", "1.running_var"):
            assert torch.equal(state[name], raw[name])
    assert all(torch.equal(value, raw[name]) for name, value in model.state_dict().items())


def test_the_saved_model_is_the_ema_of_the_steps(tiny_recipe: Path) -> None:
    run = train(tiny_recipe, *EMA, *EVERY_STEP)
    steps = [load_file(folder / "model.safetensors") for folder in checkpoints(run)]
    assert len(steps) == 12
    average = steps[0]
    for count, weights in enumerate(steps[1:], 1):
        decay = min(0.8, (1 + count) / (10 + count))
        average = {n: decay * average[n] + (1 - decay) * w for n, w in weights.items()}
    saved = load_file(run.model / "model.safetensors")
    assert set(saved) == set(average)
    for name, weight in saved.items():
        assert torch.allclose(weight, average[name], atol=1e-5), name
    assert not torch.allclose(saved["classifier.weight"], steps[-1]["classifier.weight"], atol=1e-4)
    plain = train(tiny_recipe, *EVERY_STEP, "--output_dir", "runs/plain")
    last = load_file(plain.model / "model.safetensors")
    assert all(torch.equal(weight, steps[-1][name]) for name, weight in last.items())
    assert not list(plain.folder.rglob("ema.*"))


@pytest.mark.parametrize("method", ["full", "lora", "p_tuning"])
def test_validation_and_the_best_epoch_use_the_ema(tiny_recipe: Path, method: str) -> None:
    # The learning rate is so high that the last epoch is not the best one.
    flags = ["--method", method, "--learning_rate", "0.03", "--num_train_epochs", "5"]
    run = train(tiny_recipe, *EMA, *flags, "--metric_for_best_model", "eval_log_loss")
    curve = {r["step"]: r["eval_log_loss"] for r in run.history() if "eval_log_loss" in r}
    chosen = run.results()["chosen"]
    assert chosen["value"] == curve[chosen["step"]] == min(curve.values())
    assert chosen["step"] < max(curve)
    assert log_loss(run, tiny_recipe) == pytest.approx(chosen["value"], abs=1e-5)


def resume(path: Path, *flags: str) -> run_directory.Run:
    """Returns a run that was stopped at its second evaluation and resumed."""
    with pytest.raises(KeyboardInterrupt):
        runner.train(recipe.load(path, flags), interrupted(text_classification.TASK.build))
    run = runner.train(recipe.load(path, flags), text_classification.TASK.build, resume=True)
    assert run is not None
    return run


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_resumed_run_ends_with_the_same_weights_and_ema(tiny_recipe: Path, method: str) -> None:
    flags = [*EMA, *LAST, "--method", method, "--num_train_epochs", "3"]
    whole = train(tiny_recipe, *flags, "--output_dir", "runs/whole")
    resumed = resume(tiny_recipe, *flags)
    compared = 0
    folders = zip(
        [checkpoints(whole)[-1], whole.model],
        [checkpoints(resumed)[-1], resumed.model],
        strict=True,
    )
    for ours, theirs in folders:
        for file in sorted(ours.glob("*.safetensors")):
            a, b = load_file(file), load_file(theirs / file.name)
            assert set(a) == set(b)
            assert all(torch.equal(tensor, b[name]) for name, tensor in a.items())
            compared += len(a)
    assert compared > 20
    saved = load_file(checkpoints(resumed)[-1] / "ema.safetensors")
    assert int(saved["n_averaged"]) == resumed.results()["steps"] == 18


@pytest.mark.slow
def test_two_processes_have_the_same_ema(tiny_recipe: Path) -> None:
    one = train(tiny_recipe, *EMA, "--output_dir", "runs/one")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words = ["-m", "finetune.sentiment", "tiny.yaml", *EMA, "--output_dir", "runs/two"]
    done = subprocess.run(
        [*launch, *words, "--per_device_train_batch_size", "8"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    two = run_directory.Run("runs/two")
    curves = [
        [row["eval_log_loss"] for row in run.history() if "eval_log_loss" in row]
        for run in (one, two)
    ]
    assert len(curves[0]) == 2
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)
    assert log_loss(two, tiny_recipe) == pytest.approx(log_loss(one, tiny_recipe), abs=1e-5)


def test_a_decay_of_one_is_rejected(tiny_recipe: Path) -> None:
    with pytest.raises(UserError, match=r"ema_decay: 1\.0 has to be from 0 to 0\.99999"):
        recipe.load(tiny_recipe, ["--ema_decay", "1.0"])

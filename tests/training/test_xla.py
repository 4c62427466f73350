"""XLA, on the CPU that it compiles for as for a TPU: `make xla` sets up what that needs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune import run_directory
from tests.conftest import train_job


def losses(run: run_directory.Run) -> list[float]:
    return [row[name] for row in run.history() for name in ("loss", "eval_loss") if name in row]


@pytest.mark.xla
@pytest.mark.parametrize("method", ["full", "lora", "head"])
def test_the_tiny_recipe_learns_the_same_on_xla(tiny_recipe: Path, method: str) -> None:
    run, job = train_job(tiny_recipe, "--method", method)
    assert run.results()["device"].startswith("1 x xla")
    assert {parameter.device.type for parameter in job.model.parameters()} == {"xla"}
    assert "batches padded: XLA needs fixed shapes" in job.notes
    words = [sys.executable, "-m", "finetune", "train", str(tiny_recipe), "--method", method]
    done = subprocess.run(
        [*words, "--output_dir", "runs/cpu"],
        capture_output=True,
        text=True,
        env={**os.environ, "USE_TORCH_XLA": "0"},
    )
    assert done.returncode == 0, done.stderr
    twin = run_directory.Run("runs/cpu")
    assert "cpu" in twin.results()["device"]
    assert len(losses(run)) == 14
    assert losses(run) == pytest.approx(losses(twin), abs=1e-4)

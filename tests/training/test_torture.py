"""The torture benchmark, in its short form."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The benchmark also times a save of a real model, which no test does.
QUICK = ["kill", "flip", "term", "early", "nan", "full", "rotation", "race"]
LONG = ["calls", "matrix", "ranks"]


@pytest.mark.parametrize("figures", [QUICK, pytest.param(LONG, marks=pytest.mark.slow)])
def test_every_broken_training_comes_out_whole(figures: list[str], tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "benchmarks" / "torture.py")]
    # The script imports a module of its own folder, which has to be on sys.path.
    env = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*script, "--short", "--side", "finetune", "--only", *figures],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.findall(r"finetune +(\d+)/(\d+)", done.stdout)
    # The matrix has a second line, of what has to differ.
    assert len(counts) == len(figures) + ("matrix" in figures), done.stdout
    assert all(right == every != "0" for right, every in counts), done.stdout

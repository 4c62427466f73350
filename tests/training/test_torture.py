"""The torture benchmark, in its short form."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The benchmark also times a save of a real model, which no test does.
FIGURES = ["kill", "calls", "flip", "term", "matrix", "ranks", "early", "nan", "full", "rotation"]
FIGURES += ["race"]


def test_every_broken_training_comes_out_whole(tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "benchmarks" / "torture.py")]
    # The script imports a module of its own folder, which has to be on sys.path.
    env = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*script, "--short", "--side", "finetune", "--only", *FIGURES],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.findall(r"finetune +(\d+)/(\d+)", done.stdout)
    # The matrix has a second line, of what has to differ.
    assert len(counts) == len(FIGURES) + 1, done.stdout
    assert all(right == every != "0" for right, every in counts), done.stdout

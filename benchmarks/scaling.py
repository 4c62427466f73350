"""Measures how time grows with rows and length, and memory with test rows (`make scaling`).

- Time: full fine-tuning of MiniLM on texts of exactly max_length tokens, with twice the rows and
  with twice the length, each three times, compared to the floating-point operations needed.
- Memory: peak memory of testing 1,000 and 50,000 rows on one layer of MiniLM, minus the memory
  before it.

Linux only; takes some minutes.

Writes benchmarks/results/scaling.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import numpy

NUMBERS = Path("benchmarks/results/scaling.json")
# Rows, and tokens per row.
SETTINGS = {"one": (96, 128), "twice the rows": (192, 128), "twice the length": (96, 256)}
ROUNDS = 3
TEST_ROWS = (1000, 50_000)
RECIPE = """\
task: text-classification
model:
  checkpoint: "embedded:minilm"
  max_length: {length}
  config: {{num_hidden_layers: {layers}, attention_probs_dropout_prob: 0.0}}
data: {{dataset: ., allow_overlap: true}}
training:
  per_device_train_batch_size: 16
  num_train_epochs: 1
  max_steps: {steps}
  save_strategy: "no"
  eval_strategy: "no"
  use_cpu: true
  output_dir: run
"""


def write(name: str, rows: int, words: int) -> None:
    """Writes a CSV file of ``rows`` texts with ``words`` random words of one review."""
    from finetune.data import readers
    from finetune.recipe import Data

    tables, _ = readers.dataset(Data(dataset="embedded:imdb"))
    vocabulary = "".join(
        c if c.isalpha() else " " for c in tables["train"].rows["text"].iloc[0]
    ).split()
    draw = numpy.random.default_rng(0)
    lines = [
        f"{' '.join(vocabulary[i] for i in draw.integers(0, len(vocabulary), words))},{row % 2}"
        for row in range(rows)
    ]
    Path(f"{name}.csv").write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")


def run(train: int, test: int, length: int, layers: int, steps: int) -> Any:
    """Trains and returns a run in the working directory."""
    from finetune import recipe
    from finetune.tasks import text_classification
    from finetune.training import runner

    # Every word has at least one token.
    for name, rows in {"train": train, "validation": 16, "test": test}.items():
        write(name, rows, length)
    words = RECIPE.format(length=length, layers=layers, steps=steps)
    Path("scaling.yaml").write_text(words, encoding="utf-8")
    done = runner.train(recipe.load("scaling.yaml"), text_classification.TASK.build, overwrite=True)
    assert done is not None
    return done


def training(setting: str) -> dict[str, float]:
    """Returns seconds of an epoch and the operations of its matrix products, both passes."""
    rows, length = SETTINGS[setting]
    done = run(rows, 16, length, 6, -1)
    config = json.loads((done.model / "config.json").read_text("utf-8"))
    wide, deep = config["hidden_size"], config["num_hidden_layers"]
    linear = deep * (4 * wide**2 + 2 * wide * config["intermediate_size"])
    tokens = done.results()["cost"]["tokens_seen"]
    assert tokens == rows * length
    work = 3 * (2 * linear * tokens + 4 * deep * wide * tokens * length)
    return {"seconds": done.results()["cost"]["train_seconds"], "operations": float(work)}


def memory(name: str) -> int:
    """Returns a memory figure of this process in bytes, by its name in /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def testing(rows: int) -> dict[str, float]:
    """Returns peak bytes while testing so many rows, minus the bytes before it."""
    from finetune.training import runner

    test, taken = runner.test, []

    def watched(*arguments: Any) -> Any:
        # Resets the peak (proc(5), clear_refs).
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        before = memory("VmRSS")
        found = test(*arguments)
        taken.append(memory("VmHWM") - before)
        return found

    runner.test = watched
    run(64, rows, 16, 1, 1)
    return {"bytes": taken[0]}


def measure(what: str, folder: Path) -> dict[str, float]:
    """Takes one measurement in this process."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    os.chdir(folder)
    return training(what) if what in SETTINGS else testing(int(what))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--what", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.what:
        print(json.dumps(measure(options.what, options.folder)))
        return
    found: dict[str, list[dict[str, float]]] = {}
    for what in [*list(SETTINGS) * ROUNDS, *map(str, TEST_ROWS)]:
        with tempfile.TemporaryDirectory() as folder:
            words = [sys.executable, __file__, "--what", what, "--folder", folder]
            done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{what}: {done.stderr}")
        found.setdefault(what, []).append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{what:20} {found[what][-1]}", flush=True)
    results: dict[str, Any] = {"date": date.today().isoformat(), "cores": os.cpu_count()}
    seconds = {name: statistics.median(row["seconds"] for row in found[name]) for name in SETTINGS}
    for name in list(SETTINGS)[1:]:
        ratio = seconds[name] / seconds["one"]
        work = found[name][0]["operations"] / found["one"][0]["operations"]
        results[name] = {"seconds": round(ratio, 3), "operations": round(work, 3)}
        print(f"{name}: {ratio:.2f} times the seconds, {work:.2f} times the operations")
    few, many = (found[str(rows)][0]["bytes"] for rows in TEST_ROWS)
    each = (many - few) / (TEST_ROWS[1] - TEST_ROWS[0])
    results["testing"] = {"bytes": [few, many], "bytes_a_row": round(each, 1)}
    print(f"testing: {few / 1e6:.1f} and {many / 1e6:.1f} MB, {each:.1f} bytes per additional row")
    NUMBERS.parent.mkdir(parents=True, exist_ok=True)
    NUMBERS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

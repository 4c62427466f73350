"""A student of two layers with and without its teacher (`make students`), three seeds each.

The teacher is the run that `make imdb` leaves. Each student is trained on that run's training rows
with its recipe, for two epochs without validation, and scores the same test rows once. `--arms`
names them; the first two by default:

1. distilled: the teacher's layers 3 and 6, half of the loss for the teacher's logits
2. alone: MiniLM's layers 3 and 6 and a new head, labels only: what there is without a teacher
3. with hidden states: as 1, with ``hidden_weight: 1``
4. started: the teacher's layers, labels only

Speed is rows a second of prediction, tokenizing included, on the first 200 test rows: teacher and
student in turn, the median of five rounds. Finished runs are kept, so that arms can be added.
Writes benchmarks/results/students.json and prints a table for recipes/imdb/README.md.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy

from finetune import inference, run_directory
from finetune.evaluation import intervals

FOLDER = Path("runs/students")
NUMBERS = Path("benchmarks/results/students.json")
SEEDS = (0, 1, 2)
SHORT = "--num_train_epochs 2 --eval_strategy no --save_strategy no"
ROWS, ROUNDS = 200, 5
ARMS = {
    "distilled": "distil RUN --layers 2",
    "alone": "train RECIPE --layers 2",
    "with hidden states": "distil RUN --layers 2 --hidden_weight 1",
    "started": "distil RUN --layers 2 --label_weight 1",
}


def train(arm: str, seed: int, teacher: run_directory.Run, flags: str) -> run_directory.Run:
    """Returns the finished run of an arm and a seed; trains it if it is missing."""
    run = run_directory.Run(FOLDER / arm.replace(" ", "-") / f"seed-{seed}")
    if not run.is_finished:
        words = ARMS[arm].replace("RUN", str(teacher)).replace("RECIPE", "recipes/imdb/minilm.yaml")
        command = [sys.executable, "-m", "finetune", *words.split(), *SHORT.split(), *flags.split()]
        command += ["--max_steps", "-1", "--seed", str(seed), "--output_dir", str(run)]
        done = subprocess.run([*command, "--overwrite"], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{arm}: {done.stderr.splitlines()[-1]}")
    print(f"{arm}, seed {seed}: {run.results()['metrics']['accuracy']['value']:.4f}", flush=True)
    return run


def correct(run: run_directory.Run) -> numpy.ndarray:
    """Returns 1 for each test row (N,) that a run labels right, in the order of their ids."""
    rows = run.predictions().sort_values("id")
    return (rows["label"] == rows["prediction"]).to_numpy(float)


def speed(runs: dict[str, run_directory.Run]) -> dict[str, dict[str, float]]:
    """Returns rows a second and rows a second of processor time, by name: medians."""
    loaded = {name: inference.load(run) for name, run in runs.items()}
    texts = next(iter(runs.values())).predictions()["text"][:ROWS]
    rows = [{"text": text} for text in texts]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, (model, processor, recipe) in loaded.items():
            wall, used = time.perf_counter(), time.process_time()
            inference.outputs(model, processor, recipe, rows)
            spent = time.perf_counter() - wall, time.process_time() - used
            found[name].append((ROWS / spent[0], ROWS / spent[1]))
    return {
        name: {
            "rows_per_second": statistics.median(wall for wall, _ in rates),
            "rows_per_processor_second": statistics.median(used for _, used in rates),
        }
        for name, rates in found.items()
    }


def table(arms: dict[str, dict[str, Any]], ratio: float) -> str:
    """Returns a Markdown table."""
    lines = ["| student | accuracy | minus its teacher, points | minus alone, points |"]
    lines.append("|---|---|---|---|")
    for arm, found in arms.items():
        cells = []
        for key in ("accuracy", "minus_teacher", "minus_alone"):
            value, low, high = (100 * found[key][k] for k in ("value", "low", "high"))
            shown = (
                "**{:.1f} %** [{:.1f}, {:.1f}]"
                if key == "accuracy"
                else "{:+.1f} [{:+.1f}, {:+.1f}]"
            )
            cells.append(
                "" if (arm, key) == ("alone", "minus_alone") else shown.format(value, low, high)
            )
        lines.append(f"| `finetune {ARMS[arm]}` | {' | '.join(cells)} |")
    return "\n".join([*lines, f"{ratio:.2f} times as fast as the teacher"])


def main() -> None:
    """Trains missing runs, then writes and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", default="runs/imdb/minilm", metavar="RUN")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS)[:2])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--flags", default="", help="further flags of every student")
    options = parser.parse_args()
    teacher = run_directory.one(options.teacher)
    runs = {arm: [] for arm in ("alone", *(arm for arm in options.arms if arm != "alone"))}
    for seed in options.seeds:
        for arm, made in runs.items():
            made.append(train(arm, seed, teacher, options.flags))
    rates = speed({"teacher": teacher, "student": runs["alone"][0]})
    right = {arm: numpy.array([correct(run) for run in made]) for arm, made in runs.items()}
    arms = {
        arm: {
            "flags": f"{ARMS[arm]} {SHORT} {options.flags}".strip(),
            "accuracy_by_seed": rows.mean(1).tolist(),
            "accuracy": intervals.over_seeds(rows),
            "minus_teacher": intervals.over_seeds(rows - correct(teacher)),
            "minus_alone": intervals.over_seeds(rows - right["alone"]),
        }
        for arm, rows in right.items()
    }
    about = {
        "command": f'make students ARGS="--arms {" ".join(runs)}"',
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": teacher.results()["versions"],
        "teacher": teacher.results()["metrics"]["accuracy"],
        "speed": rates,
    }
    NUMBERS.write_text(json.dumps(about | {"students": arms}, indent=1) + "\n", encoding="utf-8")
    ratio = rates["student"]["rows_per_second"] / rates["teacher"]["rows_per_second"]
    print(table(arms, ratio))


if __name__ == "__main__":
    main()

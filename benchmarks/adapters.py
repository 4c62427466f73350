"""Compares tuning methods: MiniLM on Rotten Tomatoes, three seeds each (`make adapters`).

1. Learning rate: one epoch per value of a grid with factors of about three, seed 0, chosen by
   accuracy on 1,000 validation rows. If the best value is at the edge, the grid is extended.
2. Accuracy: two epochs with that learning rate for every seed; each run scores the test rows once.
3. Time and memory: forty steps per method, one run at a time on all cores, in three rounds.

Finished runs are kept, so an interrupted comparison can be continued. Writes
benchmarks/results/adapters.json and recipes/rotten_tomatoes/adapters.svg, and prints the table of
recipes/rotten_tomatoes/README.md.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import matplotlib
import numpy
from matplotlib.figure import Figure

from finetune import run_directory
from finetune.evaluation import intervals
from finetune.report import figures, wording

RECIPE = "recipes/rotten_tomatoes/minilm.yaml"
FOLDER = Path("runs/adapters")
NUMBERS = Path("benchmarks/results/adapters.json")
FIGURE = Path("recipes/rotten_tomatoes/adapters.svg")
SEEDS = (0, 1, 2)
GRID = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
# Each method's flags, and the middle of the first three learning rates to try.
METHODS: dict[str, tuple[str, float]] = {
    "full": ("--method full", 1e-4),
    "head": ("--method head --cache_features false", 3e-3),
    "bitfit": ("--method bitfit", 3e-3),
    "bottleneck": ("--method bottleneck", 1e-3),
    "lora": ("--method lora", 1e-3),
    "dora": ("--method lora --use_dora true", 1e-3),
    "ia3": ("--method ia3", 1e-2),
    "vera": ("--method vera", 1e-2),
    "prefix_tuning": ("--method prefix_tuning", 1e-2),
    "ln_tuning": ("--method ln_tuning", 3e-3),
}

# Offsets in points of labels that would overlap others in the figure.
NUDGED = {
    "ln_tuning": (-6, 4, "right"),
    "ia3": (-6, -14, "right"),
    "bottleneck": (-6, 4, "right"),
    "lora": (6, -14, "left"),
}


def train(place: str, flags: str, threads: int = 1) -> run_directory.Run:
    """Returns the finished run of ``flags`` at runs/adapters/``place``; trains it if missing."""
    run = run_directory.Run(FOLDER / place)
    if not run.is_finished:
        command = [sys.executable, "-m", "finetune", "train", RECIPE, *flags.split()]
        command += ["--validation_size", "1000", "--output_dir", str(run), "--overwrite"]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            sys.exit(f"{place}: {done.stderr.splitlines()[-1]}")
    return run


def learning_rate(method: str) -> dict[float, float]:
    """Returns validation accuracy by learning rate; the best one is not at the grid's edge."""
    flags, middle = METHODS[method]
    at = GRID.index(middle)
    low, high, found = at - 1, at + 1, {}
    while True:
        for rate in GRID[low : high + 1]:
            if rate not in found:
                words = f"{flags} --learning_rate {rate} --num_train_epochs 1 --max_test_samples 50"
                results = train(f"{method}/search-{rate:g}", words).results()
                found[rate] = results["chosen"]["value"]
        best = max(found, key=lambda rate: found[rate])
        if best == GRID[low] and low > 0:
            low -= 1
        elif best == GRID[high] and high < len(GRID) - 1:
            high += 1
        else:
            return dict(sorted(found.items()))


def tuned(method: str) -> dict[str, Any]:
    """Returns the chosen learning rate, and ``correct`` (seeds, rows): 1 for a right test row."""
    tried = learning_rate(method)
    rate = max(tried, key=lambda rate: tried[rate])
    flags = f"{METHODS[method][0]} --learning_rate {rate} --num_train_epochs 2"
    runs = [train(f"{method}/seed-{seed}", f"{flags} --seed {seed}") for seed in SEEDS]
    frames = [run.predictions() for run in runs]
    correct = [(rows["label"] == rows["prediction"]).to_numpy() for rows in frames]
    print(f"{method}: {numpy.mean(correct):.3f}", file=sys.stderr)
    return {
        "flags": METHODS[method][0],
        "learning_rate": rate,
        "validation_accuracy_by_learning_rate": {f"{k:g}": v for k, v in tried.items()},
        "correct": numpy.array(correct, dtype=float),
        "trainable_parameters": runs[0].results()["cost"]["trainable_parameters"],
        "weight_bytes": sum(f.stat().st_size for f in runs[0].model.glob("*.safetensors")),
    }


def timed(rounds: int = 3, steps: int = 40) -> dict[str, dict[str, float]]:
    """Returns seconds per step and peak bytes of every method: medians over the rounds."""
    words = f"--max_steps {steps} --eval_strategy no --max_test_samples 50"
    costs: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
    for turn in range(rounds):
        for method, (flags, rate) in METHODS.items():
            place = f"{method}/timed-{turn}"
            run = train(place, f"{flags} --learning_rate {rate} {words}", os.cpu_count() or 1)
            costs[method].append(run.results()["cost"])
    return {
        method: {
            "step_seconds": statistics.median(c["train_seconds"] / steps for c in all_costs),
            "peak_memory_bytes": statistics.median(c["peak_memory_bytes"] for c in all_costs),
        }
        for method, all_costs in costs.items()
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Returns the README's table, best method first."""
    full = rows["full"]
    lines = [
        "| method | learning rate | accuracy | minus full, points | trained parameters | "
        "step, full = 1 | peak memory | weights on disk |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows.values(), key=lambda row: -row["accuracy"]["value"]):
        value, low, high = (100 * row["accuracy"][k] for k in ("value", "low", "high"))
        less = [100 * row["less_full"][k] for k in ("value", "low", "high")]
        apart = "" if row is full else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*less)
        count = row["trainable_parameters"]
        lines.append(
            f"| `{row['flags']}` | {row['learning_rate']:g} | "
            f"**{value:.1f} %** [{low:.1f}, {high:.1f}] | {apart} | "
            f"{count:,} ({count / full['trainable_parameters']:.2%}) | "
            f"{row['step_seconds'] / full['step_seconds']:.2f} | "
            f"{row['peak_memory_bytes'] / 1e9:.2f} GB | {row['weight_bytes'] / 1e6:.1f} MB |"
        )
    return "\n".join(lines)


def draw(rows: dict[str, dict[str, Any]]) -> None:
    """Draws accuracy against trained parameters (log scale) into an SVG file."""
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(9, 4.6), layout="constrained")
        axes = figure.subplots()
        for method, row in rows.items():
            value, low, high = (100 * row["accuracy"][k] for k in ("value", "low", "high"))
            colour = figures.ORANGE if method in {"full", "head", "bitfit"} else figures.BLUE
            spread = [[value - low], [high - value]]
            at = row["trainable_parameters"]
            axes.errorbar(at, value, spread, fmt="o", color=colour, capsize=3, markersize=6)
            x, y, side = NUDGED.get(method, (6, 4, "left"))
            axes.annotate(method, (at, value), (x, y), textcoords="offset points", ha=side)
        axes.set_xscale("log")
        axes.set_xlim(8e4, 4e7)
        axes.xaxis.set_major_formatter(lambda value, _: wording.parameters(int(value)))
        axes.set_xlabel("trained parameters (log scale)")
        axes.set_ylabel("test accuracy, %")
        axes.set_title(
            "MiniLM on Rotten Tomatoes: mean of 3 seeds, 95 % interval over seeds and rows"
        )
        figure.savefig(FIGURE, metadata={"Date": None})


def main() -> None:
    """Trains missing runs, then writes and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accuracy-only", action="store_true", help="skip the timing")
    options = parser.parse_args()
    # Two processes with one thread each are faster than one process with two threads.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = dict(zip(METHODS, pool.map(tuned, METHODS), strict=True))
    if options.accuracy_only:
        return
    correct = {method: row.pop("correct") for method, row in rows.items()}
    for method, costs in timed().items():
        rows[method] |= costs
        rows[method]["accuracy_by_seed"] = correct[method].mean(1).tolist()
        rows[method]["accuracy"] = intervals.over_seeds(correct[method])
        rows[method]["less_full"] = intervals.over_seeds(correct[method] - correct["full"])
    NUMBERS.parent.mkdir(exist_ok=True)
    about = {
        "command": "make adapters",
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": run_versions(),
    }
    NUMBERS.write_text(json.dumps(about | {"methods": rows}, indent=1) + "\n", encoding="utf-8")
    draw(rows)
    print(table(rows))


def run_versions() -> dict[str, str]:
    """Returns the package versions of the runs."""
    return run_directory.Run(FOLDER / "full" / "seed-0").results()["versions"]


if __name__ == "__main__":
    main()

"""What helps where a class is rare: Rotten Tomatoes with 5 % positive reviews, five seeds each.

The rows are the 4,265 negative reviews and so many positive ones that they are 5 %; always the same
half of them tests, a sixth validates, a third trains. Ways, each against nothing:

1. nothing: the recipe as it is
2. threshold: the same models; predicted at the threshold with the best F1 on validation
3. weights: ``class_weights: balanced``
4. focal: ``loss: focal``
5. sampler: ``sampler: balanced``

Average precision is that of the positive class; it does not depend on the threshold, macro F1
does. Brackets hold 95 % intervals over seeds and rows (the pigeonhole bootstrap, Owen 2007).
Finished runs are kept. Writes benchmarks/results/rare_classes-NAME.json and prints a table.
"""

import argparse
import json
import os
import platform
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy
import pandas

from finetune import distillation, recipe, run_directory
from finetune.data import corpus
from finetune.evaluation import statistics
from finetune.recipe import Data
from finetune.training import runner

FOLDER = Path("runs/rare_classes")
SHARE, SEEDS, RESAMPLES = 0.05, (0, 1, 2, 3, 4), 1000
POSITIVE = "positive"
# Ways that are trained; those of the threshold are the models of the first.
TRAINED = {
    "nothing": ["--threshold", "f1"],
    "weights": ["--class_weights", "balanced"],
    "focal": ["--loss", "focal"],
    "sampler": ["--sampler", "balanced"],
}
WAYS = ("nothing", "threshold", "weights", "focal", "sampler")
Rows = dict[str, numpy.ndarray]
Statistic = Callable[[numpy.ndarray], float]


def write_rows(folder: Path) -> list[str]:
    """Writes the three splits, if they are missing; returns the flags that name them."""
    files = {name: folder / f"{name}.jsonl" for name in ("train", "validation", "test")}
    if not files["test"].is_file():
        folder.mkdir(parents=True, exist_ok=True)
        given = Data(dataset="embedded:rotten_tomatoes", holdout=1000, validation_size=0)
        found = corpus.load(given)
        rows = pandas.concat([found.train, found.test]).drop_duplicates("text")
        positive = found.label_names.index(POSITIVE)
        negatives, positives = rows[rows["label"] != positive], rows[rows["label"] == positive]
        few = positives.sample(round(len(negatives) * SHARE / (1 - SHARE)), random_state=0)
        parts: dict[str, list[pandas.DataFrame]] = {name: [] for name in files}
        for kind in (negatives.sample(len(negatives), random_state=0), few):
            half, third = len(kind) // 2, 2 * len(kind) // 3
            parts["test"].append(kind.iloc[:half])
            parts["validation"].append(kind.iloc[half:third])
            parts["train"].append(kind.iloc[third:])
        for name, path in files.items():
            table = pandas.concat(parts[name])[["text", "label"]]
            table["label"] = [found.label_names[label] for label in table["label"]]
            table.to_json(path, orient="records", lines=True)
    return [word for name, path in files.items() for word in (f"--{name}", str(path))]


def train(way: str, seed: int, given: argparse.Namespace, flags: list[str]) -> run_directory.Run:
    """Returns the finished run of a way and a seed; trains it if it is missing."""
    run = run_directory.Run(FOLDER / given.name / way / f"seed-{seed}")
    if not run.is_finished:
        words = [*flags, *TRAINED[way], *given.flags.split(), "--seed", str(seed)]
        read = recipe.load(given.recipe, [*words, "--output_dir", str(run)])
        runner.train(read, distillation.builder(read), overwrite=True)
    shown = run.results()["metrics"]
    found = ", ".join(f"{shown[n]['value']:.3f} {n}" for n in ("average_precision", "macro_f1"))
    print(f"{way}, seed {seed}: {found}", flush=True)
    return run


def outputs(run: run_directory.Run, decided: bool) -> Rows:
    """Returns label, score and prediction (N,) of the test rows; ``decided`` at the threshold."""
    rows, names = run.predictions(), run.results()["data"]["label_names"]
    score = numpy.stack(rows["probabilities"].tolist())[:, names.index(POSITIVE)]
    said = (rows["prediction"] == POSITIVE).to_numpy() if decided else score > 0.5
    return {"label": (rows["label"] == POSITIVE).to_numpy(), "score": score, "said": said}


def average_precision(rows: Rows) -> Statistic:
    return statistics.average_precision(rows["score"], rows["label"])


def macro_f1(rows: Rows) -> Statistic:
    """The mean of both classes' F1."""

    def mean(places: numpy.ndarray) -> float:
        label, said = rows["label"][places], rows["said"][places]
        both = [(label, said), (~label, ~said)]
        return float(numpy.mean([2 * (a & b).sum() / max(1, a.sum() + b.sum()) for a, b in both]))

    return mean


def over_seeds(
    statistic: Callable[[Rows], Statistic], runs: list[Rows], others: list[Rows] | None
) -> dict[str, float]:
    """Returns the mean over seeds, less that of ``others``; intervals over seeds and rows."""
    count = len(runs[0]["label"])
    ours = [statistic(each) for each in runs]
    theirs = [statistic(each) for each in others] if others else [lambda _: 0.0] * len(runs)

    def value(seeds: numpy.ndarray, places: numpy.ndarray) -> float:
        return float(numpy.mean([ours[s](places) - theirs[s](places) for s in seeds]))

    draw, every = numpy.random.default_rng(0), numpy.arange(len(runs))
    means = [
        value(draw.integers(0, len(runs), len(runs)), draw.integers(0, count, count))
        for _ in range(RESAMPLES)
    ]
    low, high = numpy.percentile(means, [2.5, 97.5])
    return {"value": value(every, numpy.arange(count)), "low": float(low), "high": float(high)}


def table(ways: dict[str, dict[str, Any]]) -> str:
    """Returns a Markdown table."""
    lines = ["| way | average precision | minus nothing | macro F1 | minus nothing |"]
    lines.append("|---|---|---|---|---|")
    for way, found in ways.items():
        cells = []
        for name in ("average_precision", "macro_f1"):
            cells.append("**{value:.3f}** [{low:.3f}, {high:.3f}]".format(**found[name]))
            minus = found.get(f"{name}_minus_nothing")
            cells.append("{value:+.3f} [{low:+.3f}, {high:+.3f}]".format(**minus) if minus else "")
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Trains missing runs, then writes and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="recipes/rotten_tomatoes/minilm.yaml")
    parser.add_argument("--name", default="full", help="names the runs and the file of numbers")
    parser.add_argument("--flags", default="", help="further flags of every run")
    given = parser.parse_args()
    flags = write_rows(FOLDER / "rows")
    runs = {way: [train(way, seed, given, flags) for seed in SEEDS] for way in TRAINED}
    rows = {way: [outputs(run, False) for run in made] for way, made in runs.items()}
    rows["threshold"] = [outputs(run, True) for run in runs["nothing"]]
    ways: dict[str, dict[str, Any]] = {}
    for way in WAYS:
        others = None if way == "nothing" else rows["nothing"]
        ways[way] = {}
        for statistic in (average_precision, macro_f1):
            name = statistic.__name__
            ways[way][name] = over_seeds(statistic, rows[way], None)
            if others:
                ways[way][f"{name}_minus_nothing"] = over_seeds(statistic, rows[way], others)
    data = runs["nothing"][0].results()["data"]
    about = {
        "command": f"python benchmarks/rare_classes.py --recipe {given.recipe} --name {given.name} "
        f"--flags '{given.flags}'",
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": runs["nothing"][0].results()["versions"],
        "rows": {name: data[name] for name in ("train", "validation", "test")},
        "seeds": SEEDS,
    }
    file = Path(f"benchmarks/results/rare_classes-{given.name}.json")
    file.write_text(json.dumps(about | {"ways": ways}, indent=1) + "\n", encoding="utf-8")
    print(table(ways))


if __name__ == "__main__":
    main()

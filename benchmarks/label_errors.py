"""How many wrong labels `--find_label_errors` finds: 3 % of the labels of 4,000 rows, flipped.

Each flipped row gets another label, drawn uniformly. The list is made as the command makes it, by
the recipe's own model, and counted: how many of the flipped rows are among its first 5 %. Writes
benchmarks/results/label_errors-NAME.json and prints a line.
"""

import argparse
import json
import os
import platform
from datetime import date
from pathlib import Path

import numpy

from finetune import distillation, recipe, run_directory
from finetune.data import corpus
from finetune.evaluation import intervals
from finetune.training import label_errors, run_results

FOLDER = Path("runs/label_errors")
ROWS, FLIPPED, FIRST = 4000, 0.03, 0.05


def write_rows(path: Path, given: recipe.Recipe) -> set[str]:
    """Writes the recipe's training rows with flipped labels; returns the texts that have them."""
    data = corpus.load(given.data)
    rows, names = data.train.drop_duplicates("text"), data.label_names
    draw = numpy.random.default_rng(0)
    labels = rows["label"].to_numpy(int).copy()
    flipped = draw.choice(len(rows), round(FLIPPED * len(rows)), replace=False)
    labels[flipped] = (labels[flipped] + draw.integers(1, len(names), len(flipped))) % len(names)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"text": text, "label": names[label]})
        for text, label in zip(rows["text"], labels, strict=True)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return set(rows["text"].iloc[flipped])


def main() -> None:
    """Makes the list, then writes and prints how many of the flipped rows it begins with."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="recipes/reuters/r8.yaml")
    parser.add_argument("--name", default="r8", help="names the run and the file of numbers")
    parser.add_argument("--flags", default="--method head --learning_rate 2e-3")
    given = parser.parse_args()
    folder, flags = FOLDER / given.name, given.flags.split()
    rows = folder / "rows.jsonl"
    flipped = write_rows(rows, recipe.load(given.recipe, ["--max_train_samples", str(ROWS)]))
    # The list is of training rows: there is nothing to test.
    words = ["--train", str(rows), "--test", str(rows), "--allow_overlap", "true", *flags]
    words += ["--validation_size", "0"]
    read = recipe.load(given.recipe, [*words, "--output_dir", str(folder)])
    run = run_directory.Run(folder)
    print(label_errors.find(read, distillation.builder(read), run))
    listed = [row["text"] for row in run.label_errors()]
    count = sum(1 for _ in rows.open(encoding="utf-8"))
    first = set(listed[: round(FIRST * count)])
    found = intervals.wilson(len(flipped & first), len(flipped))
    about = {
        "command": f"python benchmarks/label_errors.py --recipe {given.recipe} --name {given.name} "
        f"--flags '{given.flags}'",
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": run_results.versions(),
        "rows": count,
        "flipped": len(flipped),
        "found": found,
    }
    file = Path(f"benchmarks/results/label_errors-{given.name}.json")
    file.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    print(
        f"{len(flipped & first)} of {len(flipped)} flipped labels are among the first "
        f"{len(first)} of {count} rows: {100 * found['value']:.1f} % "
        f"[{100 * found['low']:.1f}, {100 * found['high']:.1f}]"
    )


if __name__ == "__main__":
    main()

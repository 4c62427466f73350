"""Compares exports with `finetune predict` and pipeline() on a run's test reviews, side by side.

    finetune train recipes/imdb/minilm.yaml
    python benchmarks/export.py runs/imdb/minilm

The run is exported first where an export is missing. Each way is a process of its own that loads
the model and then labels texts, tokenizing included; in each round all ways run in turn. The first
round labels all test texts, and accuracy is compared with torch's by row; the others label 400, for
the median of the speed. It takes 12 minutes on 2 cores. Writes benchmarks/results/export.json,
unless --reviews limits the texts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy

from finetune import cli, run_directory
from finetune.report import wording

NUMBERS = Path("benchmarks/results/export.json")
PIPELINE, TORCH = "pipeline(batch_size=32)", "torch, finetune predict"
EXPORTS = {
    "ONNX Runtime": ["onnx", "fp32"],
    "ONNX Runtime, int8": ["onnx", "int8"],
    "OpenVINO": ["openvino", "fp32"],
    "OpenVINO, int8": ["openvino", "int8"],
}
WAYS = [PIPELINE, TORCH, *EXPORTS]
# Reviews of the rounds after the first.
FEWER = 400
# Of the fastest way that loses nothing, against the pipeline.
LEAST_RATIO = 2.0


def exported(run: run_directory.Run, way: str) -> Path:
    """Returns the folder of a way's export."""
    return run.folder / run_directory.EXPORTS / "-".join(EXPORTS[way])


def measure(run: run_directory.Run, way: str, count: int | None) -> dict[str, Any]:
    """Returns the seconds to label the test texts, and the labels."""
    import torch
    from transformers import pipeline

    from finetune import inference, tasks

    texts = run.predictions()["text"].tolist()[:count]
    if way == PIPELINE:
        length = inference.load(run)[2].model.max_length
        ask = pipeline("text-classification", model=str(run.model), device="cpu")
        start = time.perf_counter()
        found = ask(texts, batch_size=32, truncation=True, max_length=length)
        labels = [answer["label"] for answer in found]
    else:
        source = run if way == TORCH else run_directory.Export(exported(run, way))
        model, tokenizer, recipe = inference.load(source)
        start = time.perf_counter()
        logits = inference.outputs(model, tokenizer, recipe, [{"text": text} for text in texts])
        answers = tasks.find(recipe.task).answers(logits, source.results()["data"])
        labels = [answer["prediction"] for answer in answers]
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "labels": labels, "threads": torch.get_num_threads()}


def summary(
    run: run_directory.Run, found: dict[str, list[dict[str, Any]]], threads: int
) -> dict[str, Any]:
    """Returns speed, accuracy and size of every way, and the ratio of the fastest that holds."""
    from finetune.evaluation import intervals

    truth = run.predictions()["label"].to_numpy(str)[: len(found[TORCH][0]["labels"])]
    right = {way: truth == numpy.array(rows[0]["labels"]) for way, rows in found.items()}
    ways: dict[str, Any] = {}
    for way, rows in found.items():
        ours, theirs = right[way], right[TORCH]
        speeds = [len(row["labels"]) / row["seconds"] for row in rows]
        folder = exported(run, way) if way in EXPORTS else run.model
        ways[way] = {
            "reviews_per_second": round(statistics.median(speeds), 1),
            "every": [round(speed, 1) for speed in speeds],
            "accuracy": intervals.wilson(int(ours.sum()), len(ours)),
            "difference": intervals.difference(
                lambda i, a=ours: float(a[i].mean()),
                lambda i, b=theirs: float(b[i].mean()),
                len(ours),
            ),
            "bytes": sum(f.stat().st_size for f in folder.glob("*model.*")),
        }
    held = [way for way in EXPORTS if ways[way]["difference"]["high"] >= 0]
    fastest = max(held, key=lambda way: ways[way]["reviews_per_second"])
    slow, fast = (ways[way]["reviews_per_second"] for way in (PIPELINE, fastest))
    packages = ("torch", "transformers", "onnxruntime", "openvino", "nncf")
    kind = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    name = next(line for line in kind.splitlines() if "model name" in line).partition(": ")[2]
    return {
        "machine": {
            "processor": name,
            "cores": os.cpu_count(),
            "threads": threads,
            **{package: version(package) for package in packages},
            "date": date.today().isoformat(),
        },
        "run": run.results()["command"],
        "reviews": len(truth),
        "ways": ways,
        "fastest": fastest,
        "ratio": round(fast / slow, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("run", help="a run of text classification")
    parser.add_argument("--rounds", type=int, default=3, help="how often to run all ways")
    parser.add_argument("--reviews", type=int, help="only so many of the test texts")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    run = run_directory.one(options.run)
    if options.way:
        print(json.dumps(measure(run, options.way, options.reviews)))
        return
    for way, (to, precision) in EXPORTS.items():
        if not exported(run, way).is_dir():
            cli.main(["export", str(run), "--to", to, "--precision", precision, "--accept_loss"])
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for turn in range(options.rounds):
        for way in WAYS:
            words = [sys.executable, __file__, str(run), "--way", way]
            count = FEWER if turn else options.reviews
            words += ["--reviews", str(count)] if count else []
            done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{way}: {done.stderr}")
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{turn + 1}/{options.rounds}  {way:24} {found[way][-1]['seconds']:.1f} s")
    results = summary(run, found, found[TORCH][0]["threads"])
    if not options.reviews:
        NUMBERS.parent.mkdir(parents=True, exist_ok=True)
        NUMBERS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    for way, row in results["ways"].items():
        speed, accuracy = row["reviews_per_second"], row["accuracy"]
        print(
            f"{way:24} {speed:7.1f} reviews/s  {wording.size(row['bytes'])}  "
            f"{wording.measured('accuracy', accuracy)}  "
            f"{wording.signed('accuracy', row['difference'])}"
        )
    ratio = results["ratio"]
    print(f"{results['fastest']}: {ratio} times pipeline (at least {LEAST_RATIO})")


if __name__ == "__main__":
    main()

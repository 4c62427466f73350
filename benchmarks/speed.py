"""Compares this project's speed with transformers' Trainer and pipeline() (`make bench`).

MiniLM on IMDB reviews, max_length 256, batch 16, one epoch, fp32. Measured are:

- the plain Trainer with batches padded to the maximum, to their longest row, and grouped by length;
- this project's full, lora and head;
- ten epochs on a frozen encoder, both ways;
- predictions, compared with pipeline(batch_size=32);
- a step of lora compared with one of full: two processes on the same batches, each waiting while
  the other computes.

Every measurement is its own process. Each round runs all of them, and medians and ratios over the
rounds are printed. The limit is the time of the real tokens' matrix products at the speed of
``torch.mm``, measured in the same rounds. About 45 minutes on two cores.

Writes benchmarks/results/speed.json after every round, and benchmarks/results/speed.svg.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

NUMBERS = Path("benchmarks/results/speed.json")
FIGURE = Path("benchmarks/results/speed.svg")
LENGTH, BATCH, EPOCHS = 256, 16, 10
PLAIN = {"plain, padded": "max", "plain, dynamic": "dynamic", "plain, grouped": "grouped"}
OURS = {"full": ["full", 1], "lora": ["lora", 1], "head": ["head", 1]}
FROZEN = {"plain, frozen": "frozen", "head, ten epochs": ["head", EPOCHS]}
STEPS = {"full, a step": "full", "lora, a step": "lora"}
ANSWERS = ["pipeline", "predict"]
PATHS = ["matrix products", *PLAIN, *OURS, "steps", *FROZEN, *ANSWERS]
# Slow, and clearly apart from the others: run in the first round only. Of the plain Trainer's ten
# epochs on a frozen encoder, which are all alike, two are run, and their time counts five times.
ONCE = {"plain, padded", "plain, frozen"}
FROZEN_EPOCHS = 2
# Name: (numerator, denominator, least ratio). Ratios are taken per round or per step; above 1 the
# second is faster.
RATIOS = {
    "full against dynamic padding": ("plain, dynamic", "full", 2.2),
    "full against length-grouped": ("plain, grouped", "full", 1.5),
    "a step of full against lora": ("full, a step", "lora, a step", 1 / 0.75),
    "ten epochs on a frozen encoder": ("plain, frozen", "head, ten epochs", 10),
    "predict against pipeline": ("pipeline", "predict", 1.3),
}
MEMORY = "peak memory, full to dynamic"


def reviews(count: int) -> Any:
    """Returns ``count`` embedded reviews with their labels, the same ones every time."""
    from finetune.data import readers
    from finetune.recipe import Data

    tables, _ = readers.dataset(Data(dataset="embedded:imdb"))
    return tables["train"].rows.sample(count, random_state=0)


def products() -> dict[str, float]:
    """Returns floating-point operations per second of a layer's matrix product."""
    import torch

    states, weights = torch.randn(3200, 384), torch.randn(384, 1536)
    rates = []
    for _ in range(30):
        before = time.perf_counter()
        torch.mm(states, weights)
        rates.append(2 * 3200 * 384 * 1536 / (time.perf_counter() - before))
    return {"flops": statistics.median(rates), "threads": torch.get_num_threads()}


def plain(way: str, rows: int) -> dict[str, float]:
    """Trains the plain Trainer on so many reviews."""
    from datasets import Dataset
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    from finetune.data import sources

    folder = sources.checkpoint("embedded:minilm").folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    frame = reviews(rows)
    padding = "max_length" if way == "max" else False
    encoded = tokenizer(frame["text"].tolist(), truncation=True, max_length=LENGTH, padding=padding)
    data = Dataset.from_dict({**encoded, "labels": frame["label"].tolist()})
    if way == "frozen":
        for parameter in model.base_model.parameters():
            parameter.requires_grad = False
    with tempfile.TemporaryDirectory() as place:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                place,
                per_device_train_batch_size=BATCH,
                num_train_epochs=FROZEN_EPOCHS if way == "frozen" else 1,
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                train_sampling_strategy="group_by_length" if way == "grouped" else "random",
            ),
            train_dataset=data,
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        before = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - before
    if way == "frozen":
        seconds *= EPOCHS / FROZEN_EPOCHS
    lengths = [sum(mask) for mask in encoded["attention_mask"]]
    linear = sum(
        p.numel() for name, p in model.base_model.encoder.named_parameters() if p.ndim == 2
    )
    config = model.config
    attention = 4 * config.num_hidden_layers * config.hidden_size * sum(n * n for n in lengths)
    work = 3 * (2 * linear * sum(lengths) + attention)
    return {"seconds": seconds, "operations": float(work)}


def recipe_for(folder: Path, method: str, epochs: int, rows: int) -> str:
    """Returns a recipe for so many reviews, and writes its tables to ``folder``."""
    reviews(rows).to_csv(folder / "train.csv", index=False, columns=["text", "label"])
    few = reviews(rows).head(16)
    for name in ("validation.csv", "test.csv"):
        few.to_csv(folder / name, index=False, columns=["text", "label"])
    return f"""\
task: text-classification
model:
  checkpoint: "embedded:minilm"
  max_length: {LENGTH}
  config: {{attention_probs_dropout_prob: 0.0}}
data: {{dataset: {folder}, allow_overlap: true}}
tuning: {{method: {method}}}
training:
  per_device_train_batch_size: {BATCH}
  num_train_epochs: {epochs}
  save_strategy: "no"
  eval_strategy: "no"
  use_cpu: true
  output_dir: run
"""


def ours(method: str, epochs: int, rows: int, folder: Path) -> dict[str, float]:
    """Trains this project's recipe on the same reviews; for a head, start-up counts too."""
    from finetune import recipe
    from finetune.tasks import text_classification
    from finetune.training import runner

    words = folder / "speed.yaml"
    words.write_text(recipe_for(folder, method, epochs, rows), encoding="utf-8")
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    os.chdir(folder)
    run = runner.train(recipe.load(words), text_classification.TASK.build)
    assert run is not None
    cost = run.results()["cost"]
    return {"seconds": cost["total_seconds" if method == "head" else "train_seconds"]}


def steps(options: argparse.Namespace) -> dict[str, Any]:
    """Returns seconds of the steps of two methods that alternate on the same batches."""
    ends = [os.pipe(), os.pipe()]
    os.write(ends[0][1], b".")
    running = []
    for method, own, other in zip(STEPS.values(), ends, ends[::-1], strict=True):
        words = [sys.executable, __file__, "--path", method, "--rows", str(options.rows)]
        words += ["--folder", str(options.folder / "steps")]
        baton = (own[0], other[1])
        words += ["--baton", *map(str, baton)]
        running.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True, pass_fds=baton))
    # If one process ends or fails, the other reads end-of-file and continues.
    for end in (*ends[0], *ends[1]):
        os.close(end)
    printed = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        sys.exit(1)
    # The first step warms up, and during the last one the other process ends.
    found = [json.loads(text.splitlines()[-1])["steps"][1:-1] for text in printed]
    return {
        path: {"seconds": statistics.median(seconds), "steps": seconds}
        for path, seconds in zip(STEPS, found, strict=True)
    }


def take_turns(baton: list[int]) -> list[float]:
    """Makes a Trainer's steps wait for a byte and send one; returns the list of their seconds."""
    from transformers import TrainerCallback, trainer

    seconds: list[float] = []

    class Turns(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            os.read(baton[0], 1)
            seconds.append(-time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds[-1] += time.perf_counter()
            os.write(baton[1], b".")

    trainer.DEFAULT_CALLBACKS.append(Turns)  # pyright: ignore
    return seconds


def answers(way: str, rows: int, folder: Path) -> dict[str, Any]:
    """Returns the seconds of predicting so many reviews, and the labels."""
    from transformers import pipeline

    from finetune import inference, run_directory, tasks

    run = run_directory.one(str(folder / "run"))
    texts = reviews(rows)["text"].tolist()
    if way == "pipeline":
        ask = pipeline("text-classification", model=str(run.model), device="cpu")
        before = time.perf_counter()
        answers = ask(texts, batch_size=32, truncation=True, max_length=LENGTH)
        labels = [answer["label"] for answer in answers]
    else:
        model, tokenizer, recipe = inference.load(run)
        before = time.perf_counter()
        logits = inference.outputs(model, tokenizer, recipe, [{"text": text} for text in texts])
        answers = tasks.find(recipe.task).answers(logits, run.results()["data"])
        labels = [answer["prediction"] for answer in answers]
    return {"seconds": time.perf_counter() - before, "labels": labels}


def measure(path: str, options: argparse.Namespace) -> dict[str, Any]:
    """Takes one measurement in this process."""
    if path == "matrix products":
        return products()
    if path == "steps":
        return steps(options)
    turns = take_turns(options.baton) if options.baton else []
    if path in ANSWERS:
        found: dict[str, Any] = answers(path, options.answers, options.folder / "full")
    elif path in PLAIN or path == "plain, frozen":
        found = plain(PLAIN.get(path, "frozen"), options.rows)
    else:
        method, epochs = OURS[path] if path in OURS else FROZEN[path]
        folder = options.folder / (path if path == "full" else "other")
        subprocess.run(["rm", "-rf", str(folder)], check=True)
        folder.mkdir(parents=True)
        found = ours(str(method), int(epochs), options.rows, folder)
    found["steps"] = turns
    return found | {"peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def machine() -> dict[str, Any]:
    """Describes the machine; without importing torch, which would add to every peak memory."""
    kind = Path("/proc/cpuinfo")
    names = [x for x in kind.read_text().splitlines() if "model name" in x] if kind.exists() else []
    return {
        "processor": names[0].partition(": ")[2] if names else platform.processor(),
        "cores": os.cpu_count(),
        **{name: version(name) for name in ("torch", "transformers")},
        "date": date.today().isoformat(),
    }


def draw(seconds: dict[str, float], limit: float) -> None:
    """Draws a bar for each way of training, and the limit."""
    from matplotlib.figure import Figure

    names = [*PLAIN, *OURS]
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    axes = figure.subplots()
    axes.barh(names[::-1], [seconds[name] for name in names[::-1]], color="#4477aa")
    axes.axvline(limit, color="#aa3377", linestyle="--", label="matrix products of all tokens only")
    axes.set_xlabel("seconds per epoch")
    axes.legend(frameon=False)
    figure.savefig(FIGURE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=480, help="reviews to train on")
    parser.add_argument("--answers", type=int, default=2000, help="reviews to predict")
    parser.add_argument("--rounds", type=int, default=3, help="how often to run all measurements")
    parser.add_argument("--paths", nargs="+", default=PATHS, help="only these measurements")
    parser.add_argument("--path", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--baton", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.path:
        print(json.dumps(measure(options.path, options)))
        return
    found: dict[str, list[dict[str, Any]]] = {}
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        sizes = ["--rows", str(options.rows), "--answers", str(options.answers)]
        for turn in range(options.rounds):
            for path in options.paths:
                if turn and path in ONCE:
                    continue
                words = [sys.executable, __file__, "--path", path, "--folder", folder, *sizes]
                done = subprocess.run(words, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"{path}: {done.stderr}")
                seen = json.loads(done.stdout.splitlines()[-1])
                for name, row in seen.items() if path == "steps" else [(path, seen)]:
                    found.setdefault(name, []).append(row)
                    last = {k: v for k, v in row.items() if k not in ("labels", "steps")}
                    print(f"{turn + 1}/{options.rounds}  {name:20} {last}", flush=True)
                results = summary(found, vars(options))
                if set(options.paths) == set(PATHS):
                    NUMBERS.parent.mkdir(parents=True, exist_ok=True)
                    NUMBERS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    show(results)
    if set(options.paths) == set(PATHS):
        draw(results["seconds"], results["limit_seconds"])


def summary(found: dict[str, list[dict[str, Any]]], options: dict[str, Any]) -> dict[str, Any]:
    """Returns medians, ratios and shares of the limit of the rounds so far."""

    def middle(path: str, what: str) -> float:
        return statistics.median(row[what] for row in found[path])

    def times(path: str) -> list[float]:
        return [x for row in found[path] for x in row["steps"] or [row["seconds"]]]

    def ratio(slow: str, fast: str) -> float:
        pairs = zip(times(slow), times(fast), strict=False)
        return statistics.median(s / f for s, f in pairs)

    timed = [path for path in found if path != "matrix products"]
    seconds = {path: round(middle(path, "seconds"), 2) for path in timed}
    peaks = {path: int(middle(path, "peak_bytes")) for path in timed if path not in STEPS}
    results: dict[str, Any] = {
        "machine": machine(),
        "sizes": {name: options[name] for name in ("rows", "answers", "rounds")},
        "seconds": seconds,
        "every": {path: [round(row["seconds"], 2) for row in found[path]] for path in timed},
        "peak_bytes": peaks,
        "ratios": {
            name: round(ratio(slow, fast), 2)
            for name, (slow, fast, _) in RATIOS.items()
            if {slow, fast} <= set(seconds)
        },
    }
    if {"full", "plain, dynamic"} <= set(seconds):
        results["ratios"][MEMORY] = round(peaks["full"] / peaks["plain, dynamic"], 2)
    if set(ANSWERS) <= set(seconds):
        pairs = zip(found["pipeline"][0]["labels"], found["predict"][0]["labels"], strict=True)
        results["different_labels"] = sum(a != b for a, b in pairs)
    if {"matrix products", "plain, dynamic"} <= set(found):
        results["machine"]["threads"] = found["matrix products"][0]["threads"]
        results["gflops"] = round(middle("matrix products", "flops") / 1e9, 1)
        limit = middle("plain, dynamic", "operations") / middle("matrix products", "flops")
        results["limit_seconds"] = round(limit, 2)
        results["share_of_limit"] = {
            path: round(limit / seconds[path], 2) for path in [*PLAIN, "full"] if path in seconds
        }
    return results


def show(results: dict[str, Any]) -> None:
    """Prints medians with their number of runs, and ratios with their bars."""
    shares = results.get("share_of_limit", {})
    for path, seconds in results["seconds"].items():
        of = f"median of {len(results['every'][path])}"
        share = f"   {shares[path]:.2f} of the limit" if path in shares else ""
        print(f"{path:32} {seconds:8.2f} s   {of}{share}")
    for name, ratio in results["ratios"].items():
        bar = "at most 0.80" if name == MEMORY else f"at least {RATIOS[name][2]:.2f}"
        print(f"{name:32} {ratio:8.2f}     ({bar})")
    if "different_labels" in results:
        print(f"{'labels that differ':32} {results['different_labels']:8}")


if __name__ == "__main__":
    main()

"""Compares forecasts of seconds and memory with the runs that follow them.

python benchmarks/forecast.py
python benchmarks/forecast.py --only image-full

Each run is forecast and then trained, in processes of their own: text, image and language model,
fully and with LoRA. Prints the forecast, what the run took, and how far they are apart.

Writes benchmarks/results/forecast.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from speed import machine

from finetune import recipe
from finetune.forecast import measuring

RESULTS = Path("benchmarks/results/forecast.json")
RUNS = {
    "text-full": ["recipes/rotten_tomatoes/minilm.yaml", "--num_train_epochs", "1"],
    "text-lora": ["recipes/rotten_tomatoes/minilm-lora.yaml", "--num_train_epochs", "1"],
    "image-full": ["recipes/mnist/vit.yaml", "--num_train_epochs", "6"],
    "image-lora": ["recipes/mnist/vit.yaml", "--method", "lora", "--num_train_epochs", "6"],
    "language-model-full": ["recipes/reviews/smollm2-full.yaml", "--max_steps", "30"],
    "language-model-lora": ["recipes/reviews/smollm2-lora.yaml", "--max_steps", "30"],
}


def main() -> None:
    """Forecasts and trains each run, and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=RUNS, action="append")
    parser.add_argument("--forecast", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    # As the command line sets it, for the forecast's process, too.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    if options.forecast:
        found = measuring.measure(recipe.load(options.forecast[0], options.forecast[1:]))
        print(json.dumps({"seconds": found.train_seconds, "memory": found.peak_memory_bytes}))
        return
    kept = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else {}
    for name in options.only or RUNS:
        kept[name] = _compare(name)
        RESULTS.write_text(json.dumps({"machine": machine(), "runs": kept}, indent=1) + "\n")
        print(_line(name, kept[name]), flush=True)


def _compare(name: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--forecast", *RUNS[name]]
    forecast = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
    with tempfile.TemporaryDirectory() as folder:
        train = ["finetune", "train", *RUNS[name], "--output_dir", f"{folder}/run"]
        subprocess.run([sys.executable, "-m", *train], check=True, stdout=subprocess.DEVNULL)
        cost = json.loads(Path(folder, "run", "results.json").read_text())["cost"]
    real = {"seconds": cost["train_seconds"], "memory": cost["peak_memory_bytes"]}
    return {"command": RUNS[name], "forecast": forecast, "run": real}


def _line(name: str, found: dict[str, Any]) -> str:
    expected, real = found["forecast"], found["run"]
    seconds = expected["seconds"]["value"]
    return (
        f"{name:20} seconds {seconds:6.1f} forecast {real['seconds']:6.1f} run "
        f"{seconds / real['seconds'] - 1:+.0%}   memory {expected['memory'] / 1e9:.2f} GB forecast "
        f"{real['memory'] / 1e9:.2f} run {expected['memory'] / real['memory'] - 1:+.0%}"
    )


if __name__ == "__main__":
    main()

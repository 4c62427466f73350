"""Measures the memory that `streaming: true` takes for a large corpus, against a small one.

python benchmarks/streaming.py                  # 2 GB of text; writes about 9 GB to disk
python benchmarks/streaming.py --megabytes 200

Each corpus is made of random words of the embedded reviews. A training of a few steps runs in its
own process, whose memory is read from /proc (Linux) ten times a second: all of it, and the
anonymous part, which is no memory-mapped file.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy

from finetune.data import readers
from finetune.recipe import Data

RECIPE = """\
task: text-generation
model: {checkpoint: "embedded:smollm2", max_length: 512}
data: {train: corpus.jsonl, streaming: true, holdout: 20, validation_size: 0}
tuning: {method: lora}
training: {max_steps: 2, per_device_train_batch_size: 2, save_strategy: "no"}
"""


def write(path: Path, size: int) -> None:
    """Writes about ``size`` bytes of reviews as JSON lines, each of 200 words drawn at random."""
    tables, _ = readers.dataset(Data(dataset="embedded:imdb"))
    words = " ".join(tables["train"].rows["text"].iloc[:500]).split()
    draw, written = numpy.random.default_rng(0), 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            for places in draw.integers(0, len(words), (1000, 200)):
                written += file.write(json.dumps({"text": " ".join(words[i] for i in places)}))
                written += file.write("\n")


def peaks(folder: Path) -> tuple[int, int, float]:
    """Trains in ``folder``; returns peak bytes, peak anonymous bytes, and seconds."""
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    started = time.perf_counter()
    training = subprocess.Popen(
        [sys.executable, "-m", "finetune", "train", "recipe.yaml", "--overwrite"],
        cwd=folder,
        env={**os.environ, "XDG_CACHE_HOME": str(folder), "HF_DATASETS_CACHE": str(folder)},
    )
    most, anonymous = 0, 0
    while training.poll() is None:
        lines = Path(f"/proc/{training.pid}/status").read_text(encoding="utf-8").splitlines()
        status = dict(line.split(":", 1) for line in lines)
        most = max(most, int(status.get("VmHWM", "0").split()[0]) * 1024)
        anonymous = max(anonymous, int(status.get("RssAnon", "0").split()[0]) * 1024)
        time.sleep(0.1)
    if training.returncode:
        sys.exit("the training failed")
    return most, anonymous, time.perf_counter() - started


def main() -> None:
    """Trains on a small and a large corpus, and prints how much more memory the second takes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--megabytes", type=int, default=2000)
    parser.add_argument("--folder", help="where the corpora are written temporarily")
    args = parser.parse_args()
    found = {}
    for name, size in (("small", 1), ("large", args.megabytes)):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            write(Path(folder) / "corpus.jsonl", size * 10**6)
            found[name] = peaks(Path(folder))
        most, anonymous, seconds = found[name]
        print(
            f"{size:,} MB of text: peak {most / 1e9:.2f} GB, {anonymous / 1e9:.2f} GB of it "
            f"anonymous; {seconds:,.0f} s"
        )
    more, own = (found["large"][i] - found["small"][i] for i in (0, 1))
    print(f"the large one takes {more / 1e9:.2f} GB more, {own / 1e9:.2f} GB of it anonymous")


if __name__ == "__main__":
    main()

"""What each speed-up of a training step on a CPU is worth alone.

python benchmarks/parts.py                      # full fine-tuning, then LoRA
python benchmarks/parts.py --method lora --steps 40

MiniLM on IMDB reviews, max_length 256, batch 16, fp32. One process takes every step several times
in a row on the same batch: with everything on, and with one part off at a time, in an order that
alternates. Printed is the median over the batches of (time with the part off) / (time with
everything on), for wall time and for the process's own CPU time; 1.05 means that the part saves
5 %. Set OMP_NUM_THREADS=1 on a busy machine: threads that wait for each other count as CPU time.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLinear
from speed import BATCH, recipe_for
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from finetune import recipe
from finetune.models.speed import cpu, padding_free
from finetune.models.speed.dropout import Dropout
from finetune.models.speed.merged_lora import LoraLinear
from finetune.tasks import text_classification

ROWS = 480


@contextmanager
def classes(model: nn.Module, ours: type, plain: type) -> Iterator[None]:
    """Replaces every module of class ``ours`` by one of class ``plain`` for a while."""
    changed = [module for module in model.modules() if type(module) is ours]
    for module in changed:
        module.__class__ = plain
    yield
    for module in changed:
        module.__class__ = ours


class Hooks:
    """Padding-free hooks that can be exchanged: the last layer for first tokens, or for all."""

    def __init__(self, model: nn.Module) -> None:
        base = next(m for m in model.modules() if isinstance(m, PreTrainedModel))
        self.encoder, made = base.base_model, []
        kept = padding_free.PaddingFreeHooks

        def remember(*arguments: Any, **options: Any) -> Any:
            made.append(kept(*arguments, **options))
            return made[-1]

        padding_free.PaddingFreeHooks = remember
        assert padding_free.enable(model, {"use_cpu": True}).startswith("batches without")
        padding_free.PaddingFreeHooks = kept
        self.hooks = made[-1]
        assert self.hooks.first_only

    @contextmanager
    def for_all_tokens(self, model: nn.Module) -> Iterator[None]:
        self.hooks.remove()
        self.hooks = padding_free.PaddingFreeHooks(self.encoder, first_only=False)
        yield
        self.hooks.remove()
        self.hooks = padding_free.PaddingFreeHooks(self.encoder, first_only=True)


def prepared(method: str, folder: Path) -> tuple[nn.Module, list[dict[str, Any]], Hooks]:
    """The model, its batches and its hooks, as a run of ``method`` has them."""
    words = recipe_for(folder, method, 1, ROWS) + "\n"
    words = words.replace("max_length:", "padding_free: false\n  max_length:")
    (folder / "parts.yaml").write_text(words, encoding="utf-8")
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    torch.manual_seed(0)
    job = text_classification.TASK.build(recipe.load(folder / "parts.yaml"))
    rows = job.splits["train"].remove_columns(["length", "truncated"])
    collated = [
        job.collator([rows[i] for i in range(start, start + BATCH)])
        for start in range(0, len(rows), BATCH)
    ]
    return job.model.train(), collated, Hooks(job.model)


def step_of(model: nn.Module) -> Callable[[dict[str, Any]], tuple[float, float]]:
    """A function that takes one training step and returns its wall and CPU seconds."""
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-6, fused=True)

    def step(batch: dict[str, Any]) -> tuple[float, float]:
        wall, own = time.perf_counter(), time.process_time()
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        functional.cross_entropy(model(**inputs).logits, batch["labels"]).backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - wall, time.process_time() - own

    return step


def show(name: str, off: list[tuple[float, float]], on: list[tuple[float, float]]) -> None:
    """Prints the medians of the ratios of paired steps, with the quartiles of the CPU time's."""
    wall, own = ([a[kind] / b[kind] for a, b in zip(off, on, strict=True)] for kind in range(2))
    low, middle, high = statistics.quantiles(own, n=4)
    print(
        f"{name:28} wall {statistics.median(wall):.3f}   CPU {middle:.3f} [{low:.3f}, {high:.3f}]"
        f"   {len(on)} pairs",
        flush=True,
    )


def compare(method: str, steps: int) -> None:
    """Measures every part and prints its ratios."""
    with tempfile.TemporaryDirectory() as folder:
        model, batches, hooks = prepared(method, Path(folder))
    cpu.prepare(model)
    step = step_of(model)
    without: dict[str, Any] = {
        "Dropout": lambda m: classes(m, Dropout, nn.Dropout),
        "first token only": hooks.for_all_tokens,
    }
    if method == "lora":
        without["LoraLinear"] = lambda m: classes(m, LoraLinear, PeftLinear)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ("on", *without)}
    for number in range(-2, steps):
        batch = batches[number % len(batches)]
        names = list(seconds) if number % 2 else list(seconds)[::-1]
        for name in names:
            if name == "on":
                taken = step(batch)
            else:
                with without[name](model):
                    taken = step(batch)
            # The first steps warm up.
            if number >= 0:
                seconds[name].append(taken)
    wall, own = (statistics.median(row[kind] for row in seconds["on"]) for kind in range(2))
    print(f"{method}: a step with everything on took {wall:.2f} s, {own:.2f} s of CPU time")
    for name in without:
        show(f"{method}, {name}", seconds[name], seconds["on"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--method", choices=["full", "lora"], help="one of both methods")
    parser.add_argument("--steps", type=int, default=30, help="batches to measure")
    options = parser.parse_args()
    for method in [options.method] if options.method else ["full", "lora"]:
        compare(method, options.steps)


if __name__ == "__main__":
    main()

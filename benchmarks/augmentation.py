"""What augmentation costs, as a share of a training step: `python benchmarks/augmentation.py`.

A batch of 64 grey images of 28 x 28 pixels turned, moved, scaled and slanted, against forward,
backward and update of a small ViT (width 128, four layers, patches of 4 x 4). Both in turn, so that
whatever else the machine does meets both; medians. Prints one line a setting.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date

import torch
from transformers import ViTConfig, ViTForImageClassification

from finetune.data.augmentation import augment
from finetune.recipe import Augmentation

BATCH, CLASSES, ROUNDS, WARM_UP = 64, 10, 30, 5
SETTINGS = {
    "rotate, translate, scale, shear": Augmentation(rotate=15, translate=0.1, scale=0.1, shear=10),
    "the same, cropped, flipped, erased": Augmentation(
        rotate=15, translate=0.1, scale=0.1, shear=10, crop_area=0.5, flip=0.5, erase=0.25
    ),
    "two RandAugment operations": Augmentation(randaugment_ops=2),
}


def training_step(pixels: torch.Tensor) -> Callable[[], None]:
    """One optimizer step of the ViT on ``pixels`` (B, 1, 28, 28)."""
    config = ViTConfig(
        image_size=28,
        patch_size=4,
        num_channels=1,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
    )
    config.num_labels = CLASSES
    model = ViTForImageClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters())
    labels = torch.arange(len(pixels)) % CLASSES

    def step() -> None:
        logits = model(pixel_values=pixels).logits
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    """Time the step and every setting in turn, and print the medians."""
    torch.manual_seed(0)
    pixels, rows = torch.rand(BATCH, 1, 28, 28), torch.arange(BATCH)
    work: dict[str, Callable[[], object]] = {"step": training_step(pixels)}
    for name, said in SETTINGS.items():
        work[name] = lambda said=said: augment(pixels, rows, 0, 0, said)
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(WARM_UP + ROUNDS):
        for name, do in work.items():
            start = time.perf_counter()
            do()
            if turn >= WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    step = median.pop("step")
    print(
        f"{date.today()}, {os.cpu_count()} cores ({platform.machine()}), "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {ROUNDS} rounds"
    )
    print(f"training step: {1e3 * step:.1f} ms")
    for name, time_taken in median.items():
        print(f"{name}: {1e3 * time_taken:.2f} ms, {time_taken / step:.1%} of the step")


if __name__ == "__main__":
    main()

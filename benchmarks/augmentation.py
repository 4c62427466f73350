"""Measures the cost of augmentation as a share of a training step, and against kornia's own.

python benchmarks/augmentation.py

A batch of 64 grey images of 28 x 28 pixels is augmented; a training step is forward, backward and
update of a small ViT (width 128, four layers, patches of 4 x 4). All are run in turn, so that other
load on the machine affects them alike. Prints the median of each.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date

import torch
from kornia.augmentation import RandomCutMixV2
from kornia.geometry import get_rotation_matrix2d, warp_affine
from transformers import ViTConfig, ViTForImageClassification

from finetune.data import warping
from finetune.data.augmentation import augment, mix
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


def against_kornia(pixels: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Returns our warp and CutMix and kornia's of the same images, by name."""
    rows, labels = torch.arange(len(pixels)), torch.arange(len(pixels)) % CLASSES
    degrees = torch.rand(len(pixels)) * 30 - 15
    centre, ones = torch.full((len(pixels), 2), 13.5), torch.ones(len(pixels), 2)
    cutmix = RandomCutMixV2(p=1.0, data_keys=["input", "class"], use_correct_lambda=True)
    boxes = cutmix.forward_parameters(pixels.shape)

    def ours() -> torch.Tensor:
        return warping.warp(pixels, warping.matrix(28, 28, rotate=degrees))

    def theirs() -> torch.Tensor:
        matrix = get_rotation_matrix2d(centre, degrees, ones)
        return warp_affine(pixels, matrix, (28, 28), align_corners=True)

    torch.testing.assert_close(ours(), theirs(), atol=1e-5, rtol=0)
    return {
        "rotate, ours": ours,
        "rotate, kornia": theirs,
        "CutMix, ours": lambda: mix(
            pixels, labels, CLASSES, rows, 0, 0, Augmentation(cutmix=1.0), training=True
        ),
        "CutMix, kornia": lambda: cutmix(pixels, labels, params=boxes),
    }


def main() -> None:
    """Times the step and every setting in turn, and prints the medians."""
    torch.manual_seed(0)
    pixels, rows = torch.rand(BATCH, 1, 28, 28), torch.arange(BATCH)
    work: dict[str, Callable[[], object]] = {"step": training_step(pixels)}
    for name, config in SETTINGS.items():
        work[name] = lambda config=config: augment(pixels, rows, 0, 0, config, training=True)
    work |= against_kornia(pixels)
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

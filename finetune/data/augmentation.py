"""Random augmentation of training images, and of the views for test-time augmentation (TTA).

- Every image draws its own numbers from ``row_random``: the result follows from the seed, the epoch
  and the row, to float rounding, whatever batch, order or process the image is in.
- The numbers are drawn on the CPU, a few dozen an image, so that they are the same on every device
  and a GPU does not have to run hundreds of tiny kernels. The pixels are computed where they are.
- Flip, then one warp for crop and affine changes together, then RandAugment, then erasing. ``mix``
  blends images of a batch.

RandAugment's operations on pixel values are kornia's. The rest is ours, because kornia's is 4 to 6
times slower: a rotation takes 1.17 ms and ours 0.26 ms, for the same pixels to 1e-5; CutMix 6.0 ms
and ours 1.0 ms (python benchmarks/augmentation.py, kornia 0.9, one thread, 2026-11-25). Its
``RandomErasing`` fills a rectangle with one value, not with noise.
"""

import torch
from scipy import special
from torch import Tensor
from torch.nn import functional

from finetune.data import randaugment, row_random, warping
from finetune.recipe import Augmentation

Draws = dict[str, Tensor]

# The most RandAugment operations that a recipe may ask for.
SLOTS = 8
# A draw's number is its place in this list. The noise of erasing has the numbers after it.
DRAWS = (
    *("crop area", "crop aspect", "crop y", "crop x", "flip", "rotate", "translate x"),
    *("translate y", "scale", "shear", "erase", "erase area", "erase aspect", "erase y", "erase x"),
    *("mix kind", "mix share", "mix y", "mix x"),
    *(f"{what} {slot}" for slot in range(SLOTS) for what in ("operation", "direction")),
)


def active(config: Augmentation) -> bool:
    """Returns whether ``augment`` changes anything."""
    return bool(_warps(config) or config.flip or config.randaugment_ops or config.erase)


def mixes(config: Augmentation) -> bool:
    """Returns whether mixup or CutMix is on."""
    return bool(config.mixup or config.cutmix)


def augment(
    pixels: Tensor,
    rows: Tensor,
    epoch: int | Tensor,
    seed: int,
    config: Augmentation,
    *,
    training: bool | Tensor = True,
) -> Tensor:
    """Augments each image by its own random numbers.

    Args:
        pixels: (B, C, H, W) float in [0, 1], C 1 or 3.
        rows: (B,) int64, each image's row number, from 0 up.
        epoch: one for all, or (B,). For TTA, the number of the view.
        training: whether these are training rows (else evaluation rows): one for all, or (B,) bool.

    Returns:
        (B, C, H, W) float in [0, 1]; ``pixels`` itself if ``config`` changes nothing.

    Raises:
        UserError: RandAugment is on and kornia is not installed.
    """
    if not active(config):
        return pixels
    keys = row_random.keys(rows, training, epoch, seed)
    draws = _draws(keys)
    if config.flip:
        mirrored = (draws["flip"] < config.flip).to(pixels.device)
        pixels = torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)
    if _warps(config):
        pixels = _crop_and_warp(pixels, draws, config)
    if config.randaugment_ops:
        pixels = randaugment.apply(pixels, draws, config)
    if config.erase:
        pixels = _erase(pixels, keys, draws, config.erase)
    return pixels


def mix(
    pixels: Tensor,
    labels: Tensor,
    classes: int,
    rows: Tensor,
    epoch: int | Tensor,
    seed: int,
    config: Augmentation,
    *,
    training: bool | Tensor = True,
) -> tuple[Tensor, Tensor]:
    """Mixes every image, and its label, with another of the batch by mixup or CutMix.

    - Mixup (Zhang et al. 2018) blends all pixels; the image's own share is Beta(alpha, alpha).
    - CutMix (Yun et al. 2019) pastes a rectangle of the other image, clipped at the border. Its
      area before clipping is 1 minus a Beta(alpha, alpha) share.
    - With both on, each is used for half of the images.
    - The rows of the batch are sorted by their keys; the partner is the row before.

    Args:
        pixels: (B, C, H, W) float in [0, 1].
        labels: (B,) int64, below ``classes``.
        rows, epoch, training: as for ``augment``.
        config: with mixup or cutmix on; see ``mixes``.

    Returns:
        (B, C, H, W) float in [0, 1], and soft labels (B, classes) float whose rows add up to 1.
    """
    height, width = pixels.shape[-2:]
    keys = row_random.keys(rows, training, epoch, seed)
    draws = _draws(keys)
    order = keys.argsort()
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    partner = partner.to(pixels.device)
    chance = 0.5 if config.mixup and config.cutmix else float(config.cutmix > 0)
    pastes = draws["mix kind"] < chance
    alpha = torch.where(pastes, config.cutmix, config.mixup).numpy()
    kept = torch.from_numpy(special.betaincinv(alpha, alpha, draws["mix share"].numpy()))

    half = (1 - kept).sqrt() / 2
    top, bottom = _clipped(draws["mix y"], half, height)
    left, right = _clipped(draws["mix x"], half, width)
    pasted = (bottom - top) * (right - left) / (height * width)

    device, dtype = pixels.device, pixels.dtype
    inside = _inside(torch.stack([top, bottom, left, right]), pixels)
    weight = torch.where(
        pastes.to(device)[:, None, None, None],
        (~inside).to(dtype),
        kept.to(dtype).to(device)[:, None, None, None],
    )
    share = torch.where(pastes, 1 - pasted, kept).float().to(device)[:, None]
    targets = functional.one_hot(labels, classes).float()
    return (
        torch.lerp(pixels[partner], pixels, weight),
        share * targets + (1 - share) * targets[partner],
    )


# --- random numbers --------------------------------------------------------------------------


def _draws(keys: Tensor) -> Draws:
    """Returns every draw by its name, (B,) float64 in [0, 1), whether or not it is used."""
    drawn = row_random.uniform(keys, torch.arange(len(DRAWS)))
    return dict(zip(DRAWS, drawn.double().T.contiguous(), strict=True))


# --- geometry --------------------------------------------------------------------------------


def _warps(config: Augmentation) -> bool:
    return config.crop_area < 1 or _is_affine(config)


def _is_affine(config: Augmentation) -> bool:
    return bool(config.rotate or config.translate or config.scale or config.shear)


def _crop_and_warp(pixels: Tensor, draws: Draws, config: Augmentation) -> Tensor:
    """Crops, resizes to full size, then zooms, shears, rotates and shifts, in one interpolation."""
    spread = {name: 2 * draw - 1 for name, draw in draws.items()}
    matrix = warping.matrix(
        *pixels.shape[-2:],
        rotate=config.rotate * spread["rotate"],
        shear_x=(torch.pi / 180 * config.shear * spread["shear"]).tan(),
        translate_x=config.translate * spread["translate x"],
        translate_y=config.translate * spread["translate y"],
        zoom=1 + config.scale * spread["scale"],
    )
    area = config.crop_area + (1 - config.crop_area) * draws["crop area"]
    high, wide = _sides(area, draws["crop aspect"], 4 / 3)
    size = torch.stack([wide, high], dim=1)
    centre = (1 - size) * torch.stack([spread["crop x"], spread["crop y"]], dim=1)
    matrix *= size[:, :, None]
    matrix[:, :, 2] += centre
    # A crop alone stays inside the image: black from outside would only darken its edge.
    return warping.warp(pixels, matrix, "zeros" if _is_affine(config) else "border")


def _sides(area: Tensor, draw: Tensor, widest: float) -> tuple[Tensor, Tensor]:
    """Returns height and width (B,), as shares of the sides, of a rectangle inside the image.

    Args:
        area: its share of the image (B,).
        draw: (B,) in [0, 1), which decides the aspect ratio.
        widest: the largest aspect ratio, relative to the image's; the smallest is 1 / ``widest``.
            The logarithm of the ratio is uniform in between, as far as the rectangle fits.
    """
    aspect = (1 / area).clamp(max=widest) ** (2 * draw - 1)
    return (area / aspect).sqrt(), (area * aspect).sqrt()


# --- rectangles ------------------------------------------------------------------------------


def _erase(pixels: Tensor, keys: Tensor, draws: Draws, chance: float) -> Tensor:
    """Replaces a rectangle of 2 % to a third of the area by noise (Zhong et al. 2020)."""
    chosen = (draws["erase"] < chance).nonzero()[:, 0]
    area = 0.02 + (1 / 3 - 0.02) * draws["erase area"][chosen]
    sides = _sides(area, draws["erase aspect"][chosen], 1 / 0.3)
    edges = []
    for share, name, length in zip(sides, "yx", pixels.shape[-2:], strict=True):
        size = (share * length).round().clamp(min=1)
        first = (draws[f"erase {name}"][chosen] * (length - size + 1)).floor()
        edges += [first, first + size]
    to = chosen.to(pixels.device)
    before = pixels[to]
    count = before[:1].numel()
    numbers = len(DRAWS) + torch.arange(count, device=pixels.device)
    noise = row_random.uniform(keys[chosen].to(pixels.device), numbers).view_as(before)
    inside = _inside(torch.stack(edges), pixels)
    return pixels.index_copy(0, to, torch.where(inside, noise.to(pixels.dtype), before))


def _clipped(draw: Tensor, half: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Returns first and last pixel + 1 (B,) of an interval around a pixel drawn uniformly."""
    centre, reach = (draw * length).floor(), (half * length).floor()
    return (centre - reach).clamp(min=0), (centre + reach).clamp(max=length)


def _inside(edges: Tensor, pixels: Tensor) -> Tensor:
    """Returns which pixels are in a rectangle: bool (B, 1, H, W).

    Args:
        edges: (4, B): first row, last row + 1, first column, last column + 1.
    """
    height, width = pixels.shape[-2:]
    top, bottom, left, right = edges.long().to(pixels.device)[..., None, None, None]
    y = torch.arange(height, device=pixels.device)[:, None]
    x = torch.arange(width, device=pixels.device)
    return (top <= y) & (y < bottom) & (left <= x) & (x < right)

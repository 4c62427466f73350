"""Training images changed at random, on whatever device they are.

Every random number is a pure function of the seed, the epoch, the row and which draw it is
(splitmix64, Steele et al. 2014): a row gets the same picture, to float rounding, in whatever batch,
order or process it comes, and no global random state is read or moved.

The draws are made on the CPU, a few dozen numbers an image: the same on every device, and a GPU is
not asked for hundreds of tiny kernels.
"""

from types import ModuleType

import torch
from scipy import special
from torch import Tensor
from torch.nn import functional

from finetune.errors import UserError
from finetune.recipe import Augmentation

Draws = dict[str, Tensor]

# The most operations that a recipe may ask for.
SLOTS = 8
# Draws from this number on are not those of the changes.
NOISE_FROM = 1 << 20
DRAWS = (
    *("crop area", "crop aspect", "crop y", "crop x", "flip", "rotate", "translate x"),
    *("translate y", "scale", "shear", "erase", "erase area", "erase aspect", "erase y", "erase x"),
    *("mix kind", "mix share", "mix y", "mix x"),
    *(f"{what} {slot}" for slot in range(SLOTS) for what in ("operation", "direction")),
)
# RandAugment's operations (Cubuk et al. 2020) and how far they go at magnitude 10, as in timm and
# torchvision; a magnitude says nothing to those of 0.
REACH = {
    "identity": 0.0,
    "auto-contrast": 0.0,
    "equalize": 0.0,
    "rotate": 30.0,  # degrees
    "solarize": 1.0,  # share of the values, from white down
    "color": 0.9,
    "posterize": 4.0,  # bits of 8 taken away
    "contrast": 0.9,
    "brightness": 0.9,
    "sharpness": 0.9,
    "shear_x": 0.3,
    "shear_y": 0.3,
    "translate_x": 0.45,  # share of the side
    "translate_y": 0.45,
}
OPERATIONS = tuple(REACH)


def active(said: Augmentation) -> bool:
    """Whether ``augment`` changes anything."""
    return bool(_warps(said) or said.flip or said.randaugment_ops or said.erase)


def mixes(said: Augmentation) -> bool:
    """Whether ``mix`` is asked for."""
    return bool(said.mixup or said.cutmix)


def augment(
    pixels: Tensor, rows: Tensor, epoch: int | Tensor, seed: int, said: Augmentation
) -> Tensor:
    """``pixels`` changed as ``said``: mirrored, warped once, RandAugment's operations, erased.

    Args:
        pixels: (B, C, H, W) float in [0, 1], C 1 or 3.
        rows: (B,) int64, each image's row number.
        epoch: one for all, or each image's own (B,).

    Returns:
        (B, C, H, W) float in [0, 1]; ``pixels`` itself where nothing is asked for.

    Raises:
        UserError: RandAugment without kornia.
    """
    if not active(said):
        return pixels
    keys = _keys(rows, epoch, seed)
    draws = _draws(keys)
    if said.flip:
        mirrored = (draws["flip"] < said.flip).to(pixels.device)
        pixels = torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)
    if _warps(said):
        pixels = _crop_and_warp(pixels, draws, said)
    if said.randaugment_ops:
        pixels = _randaugment(pixels, draws, said)
    if said.erase:
        pixels = _erase(pixels, keys, draws, said.erase)
    return pixels


def noise(rows: Tensor, count: int, epoch: int, seed: int) -> Tensor:
    """Numbers (B, ``count``) in [0, 1) that are a row's own in an epoch, for masks and the like."""
    numbers = torch.arange(NOISE_FROM, NOISE_FROM + count, device=rows.device)
    return _uniform(_keys(rows, epoch, seed), numbers)


def mix(
    pixels: Tensor,
    labels: Tensor,
    classes: int,
    rows: Tensor,
    epoch: int,
    seed: int,
    said: Augmentation,
) -> tuple[Tensor, Tensor]:
    """Every image mixed with another of the batch by mixup or CutMix, and so are the labels.

    Mixup (Zhang et al. 2018) keeps the share Beta(alpha, alpha) of every pixel; CutMix (Yun et al.
    2019) pastes a rectangle of the rest of that share, cut off at the border. With both, half of
    the images get either. Each row draws for itself; its partner is its neighbour among the batch's
    rows, put in an order that the seed and epoch decide.

    Args:
        pixels: (B, C, H, W) float in [0, 1].
        labels: (B,) int64, below ``classes``.
        rows: (B,) int64, each image's row number.
        said: with mixup or cutmix set; see ``mixes``.

    Returns:
        (B, C, H, W) float in [0, 1] and the labels' shares, (B, classes) float that add up to 1.
    """
    height, width = pixels.shape[-2:]
    keys = _keys(rows, epoch, seed)
    draws = _draws(keys)
    order = keys.argsort()
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    partner = partner.to(pixels.device)
    chance = 0.5 if said.mixup and said.cutmix else float(said.cutmix > 0)
    pastes = draws["mix kind"] < chance
    alpha = torch.where(pastes, said.cutmix, said.mixup).numpy()
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


def _splitmix64(state: Tensor, number: Tensor) -> Tensor:
    """The ``number``-th output of splitmix64 started from ``state``; int64 that broadcast."""
    # Constants above 2**63 and logical shifts, in torch's signed integers.
    bits = state + (number + 1) * (0x9E3779B97F4A7C15 - (1 << 64))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits ^= (bits >> shift) & ((1 << (64 - shift)) - 1)
        bits *= factor - (1 << 64)
    return bits ^ ((bits >> 31) & ((1 << 33) - 1))


def _keys(rows: Tensor, epoch: int | Tensor, seed: int) -> Tensor:
    """Each row's own state (B,) int64, on the CPU."""
    state = torch.zeros((), dtype=torch.int64)
    for number in (torch.tensor(seed), torch.as_tensor(epoch), rows.cpu().long()):
        state = _splitmix64(state, number)
    return state


def _uniform(keys: Tensor, numbers: Tensor) -> Tensor:
    """Draws (B, N) float32 in [0, 1), multiples of 2^-24, for ``keys`` (B,) and ``numbers`` (N,).

    Exact on every device: integers, then one division by a power of two.
    """
    bits = _splitmix64(keys[:, None], numbers)
    return ((bits >> 40) & ((1 << 24) - 1)).float() / (1 << 24)


def _draws(keys: Tensor) -> Draws:
    """Every draw by its name, (B,) float64 in [0, 1); one does not depend on which others serve."""
    drawn = _uniform(keys, torch.arange(len(DRAWS)))
    return dict(zip(DRAWS, drawn.double().T.contiguous(), strict=True))


# --- geometry --------------------------------------------------------------------------------


def _warps(said: Augmentation) -> bool:
    return said.crop_area < 1 or _leaves_the_frame(said)


def _leaves_the_frame(said: Augmentation) -> bool:
    return bool(said.rotate or said.translate or said.scale or said.shear)


def _crop_and_warp(pixels: Tensor, draws: Draws, said: Augmentation) -> Tensor:
    """A crop drawn out to full size, then scaled, slanted, turned and moved: one interpolation."""
    spread = {name: 2 * draw - 1 for name, draw in draws.items()}
    matrix = _matrix(
        *pixels.shape[-2:],
        rotate=said.rotate * spread["rotate"],
        shear_x=(torch.pi / 180 * said.shear * spread["shear"]).tan(),
        translate_x=said.translate * spread["translate x"],
        translate_y=said.translate * spread["translate y"],
        zoom=1 + said.scale * spread["scale"],
    )
    area = said.crop_area + (1 - said.crop_area) * draws["crop area"]
    high, wide = _sides(area, draws["crop aspect"], 4 / 3)
    size = torch.stack([wide, high], dim=1)
    centre = (1 - size) * torch.stack([spread["crop x"], spread["crop y"]], dim=1)
    matrix *= size[:, :, None]
    matrix[:, :, 2] += centre
    # A crop ends at the frame at most: black from beyond would only darken its edge.
    return _warp(pixels, matrix, "zeros" if _leaves_the_frame(said) else "border")


def _sides(area: Tensor, draw: Tensor, widest: float) -> tuple[Tensor, Tensor]:
    """Height and width (B,), as shares of the image's, of a rectangle that fits into it.

    Args:
        area: its share of the image (B,).
        widest: the largest width over height, in the image's own; 1 / ``widest`` is the least.
            The logarithm is uniform in between, as far as the rectangle fits.
    """
    aspect = (1 / area).clamp(max=widest) ** (2 * draw - 1)
    return (area / aspect).sqrt(), (area * aspect).sqrt()


def _matrix(
    height: int,
    width: int,
    *,
    rotate: Tensor | float = 0.0,
    shear_x: Tensor | float = 0.0,
    shear_y: Tensor | float = 0.0,
    translate_x: Tensor | float = 0.0,
    translate_y: Tensor | float = 0.0,
    zoom: Tensor | float = 1.0,
) -> Tensor:
    """Where each output point comes from: (B, 2, 3), in coordinates from -1 to 1 over the image.

    Args:
        rotate: degrees (B,).
        shear_x, shear_y: tangent of the slant (B,).
        translate_x, translate_y: share of the side (B,).
        zoom: output size over input size (B,).
    """
    # Products written out: a batched matrix product rounds differently for another batch size.
    turn = torch.as_tensor(rotate, dtype=torch.float64) * (torch.pi / 180)
    cos, sin = turn.cos() / zoom, turn.sin() / zoom
    xx, xy = cos + shear_x * sin, (shear_x * cos - sin) * (height / width)
    yx, yy = (shear_y * cos + sin) * (width / height), cos - shear_y * sin
    x, y = 2 * translate_x, 2 * translate_y
    entries = torch.broadcast_tensors(xx, xy, xx * x + xy * y, yx, yy, yx * x + yy * y)
    return torch.stack(entries, dim=1).view(-1, 2, 3)


def _warp(pixels: Tensor, matrix: Tensor, padding: str = "zeros") -> Tensor:
    """``pixels`` (B, C, H, W) read where ``matrix`` (B, 2, 3) points, by bilinear interpolation."""
    height, width = pixels.shape[-2:]
    x = (2 * torch.arange(width, device=pixels.device) + 1) / width - 1
    y = (2 * torch.arange(height, device=pixels.device)[:, None] + 1) / height - 1
    row = matrix.float().to(pixels.device)[..., None, None]
    grid = row[:, :, 0] * x + (row[:, :, 1] * y + row[:, :, 2])
    out = functional.grid_sample(
        pixels.float(), grid.permute(0, 2, 3, 1), padding_mode=padding, align_corners=False
    )
    return out.clamp_(0, 1).to(pixels.dtype)


# --- RandAugment -----------------------------------------------------------------------------


def _randaugment(pixels: Tensor, draws: Draws, said: Augmentation) -> Tensor:
    """``said.randaugment_ops`` operations drawn for each image with replacement, one by one."""
    enhance = _kornia()
    out = pixels.clone()
    for slot in range(said.randaugment_ops):
        kind = (draws[f"operation {slot}"] * len(OPERATIONS)).long()
        direction = torch.where(draws[f"direction {slot}"] < 0.5, -1.0, 1.0).double()
        for number, name in enumerate(OPERATIONS):
            drew = (kind == number).nonzero()[:, 0]
            if len(drew) and name != "identity":
                to = drew.to(pixels.device)
                strength = said.randaugment_magnitude / 10
                out[to] = _operation(name, out[to], strength, direction[drew], enhance)
    return out


def _operation(
    name: str, pixels: Tensor, strength: float, direction: Tensor, enhance: ModuleType
) -> Tensor:
    """``pixels`` (B, C, H, W) after one operation.

    Args:
        strength: 0 to 1.
        direction: -1 or 1 (B,): which way an operation goes that has two.
    """
    reach = strength * REACH[name]
    factor = (1 + reach * direction).to(pixels.dtype).to(pixels.device)
    match name:
        case "auto-contrast":
            low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
            return torch.where(high > low, (pixels - low) / (high - low), pixels)
        case "equalize":
            return enhance.equalize(pixels)
        case "solarize":
            # White itself is below the threshold at strength 0.
            return enhance.solarize(pixels, (1 - reach) * 256 / 255)
        case "color":
            return enhance.adjust_saturation_with_gray_subtraction(pixels, factor)
        case "posterize":
            return enhance.posterize(pixels, 8 - round(reach))
        case "contrast":
            return enhance.adjust_contrast_with_mean_subtraction(pixels, factor)
        case "brightness":
            return enhance.adjust_brightness_accumulative(pixels, factor)
        case "sharpness":
            return enhance.sharpness(pixels, factor)
    return _warp(pixels, _matrix(*pixels.shape[-2:], **{name: reach * direction}))


def _kornia() -> ModuleType:
    """kornia.enhance, whose functions take a factor for each image.

    Raises:
        UserError: kornia is not installed.
    """
    try:
        from kornia import enhance
    except ImportError:
        raise UserError(
            "images need pillow and kornia: pip install 'finetune-recipes[vision]'"
        ) from None
    return enhance


# --- rectangles ------------------------------------------------------------------------------


def _erase(pixels: Tensor, keys: Tensor, draws: Draws, chance: float) -> Tensor:
    """Noise in place of a rectangle of 2 % to a third of the area (Zhong et al. 2020)."""
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
    noise = _uniform(keys[chosen].to(pixels.device), numbers).view_as(before).to(pixels.dtype)
    inside = _inside(torch.stack(edges), pixels)
    return pixels.index_copy(0, to, torch.where(inside, noise, before))


def _clipped(draw: Tensor, half: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """First pixel and the one behind the last (B,) of a stretch about a pixel drawn uniformly."""
    centre, reach = (draw * length).floor(), (half * length).floor()
    return (centre - reach).clamp(min=0), (centre + reach).clamp(max=length)


def _inside(edges: Tensor, pixels: Tensor) -> Tensor:
    """Which of ``pixels`` lie in a rectangle: bool (B, 1, H, W).

    Args:
        edges: first row and the one behind the last, first column and the one behind: (4, B).
    """
    height, width = pixels.shape[-2:]
    top, bottom, left, right = edges.long().to(pixels.device)[..., None, None, None]
    y = torch.arange(height, device=pixels.device)[:, None]
    x = torch.arange(width, device=pixels.device)
    return (top <= y) & (y < bottom) & (left <= x) & (x < right)

"""RandAugment (Cubuk et al. 2020): operations drawn at random for each image.

Operations on pixel values are kornia's, with a factor for each image. Auto-contrast is ours,
because kornia's ``normalize_min_max`` turns an image of one value black. The warps are ours, too:
see ``warping``.
"""

from types import ModuleType

import torch
from torch import Tensor

from finetune.data import warping
from finetune.errors import UserError
from finetune.recipe import Augmentation

# The operations and how far they go at magnitude 10, as in timm and torchvision. The magnitude has
# no effect on those with 0.
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


def apply(pixels: Tensor, draws: dict[str, Tensor], config: Augmentation) -> Tensor:
    """Applies ``config.randaugment_ops`` operations to each image, drawn with replacement."""
    enhance = _kornia()
    out = pixels.clone()
    for slot in range(config.randaugment_ops):
        kind = (draws[f"operation {slot}"] * len(OPERATIONS)).long()
        direction = torch.where(draws[f"direction {slot}"] < 0.5, -1.0, 1.0).double()
        for number, name in enumerate(OPERATIONS):
            drew = (kind == number).nonzero()[:, 0]
            if len(drew) and name != "identity":
                to = drew.to(pixels.device)
                strength = config.randaugment_magnitude / 10
                out[to] = operation(name, out[to], strength, direction[drew], enhance)
    return out


def operation(
    name: str, pixels: Tensor, strength: float, direction: Tensor, enhance: ModuleType
) -> Tensor:
    """Applies one operation to ``pixels`` (B, C, H, W).

    Args:
        strength: 0 to 1.
        direction: -1 or 1 (B,), the sign of operations that have one.
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
    return warping.warp(pixels, warping.matrix(*pixels.shape[-2:], **{name: reach * direction}))


def _kornia() -> ModuleType:
    """Imports kornia.enhance, whose functions take a factor for each image.

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

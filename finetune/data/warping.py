"""Affine warps of a batch of images, a matrix for each image.

Ours, because kornia's ``warp_affine`` takes 4 times as long for the same pixels: the figures are in
``augmentation``.
"""

import torch
from torch import Tensor
from torch.nn import functional


def matrix(
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
    """Returns where each output point is read: (B, 2, 3), in coordinates from -1 to 1.

    Args:
        rotate: degrees (B,).
        shear_x, shear_y: tangent of the angle (B,).
        translate_x, translate_y: share of the side (B,).
        zoom: output size over input size (B,).
    """
    # Written out: a batched matrix product rounds differently for another batch size.
    turn = torch.as_tensor(rotate, dtype=torch.float64) * (torch.pi / 180)
    cos, sin = turn.cos() / zoom, turn.sin() / zoom
    xx, xy = cos + shear_x * sin, (shear_x * cos - sin) * (height / width)
    yx, yy = (shear_y * cos + sin) * (width / height), cos - shear_y * sin
    x, y = 2 * translate_x, 2 * translate_y
    entries = torch.broadcast_tensors(xx, xy, xx * x + xy * y, yx, yy, yx * x + yy * y)
    return torch.stack(entries, dim=1).view(-1, 2, 3)


def warp(pixels: Tensor, matrix: Tensor, padding: str = "zeros") -> Tensor:
    """Reads ``pixels`` (B, C, H, W) where ``matrix`` (B, 2, 3) points, interpolating linearly."""
    height, width = pixels.shape[-2:]
    x = (2 * torch.arange(width, device=pixels.device) + 1) / width - 1
    y = (2 * torch.arange(height, device=pixels.device)[:, None] + 1) / height - 1
    row = matrix.float().to(pixels.device)[..., None, None]
    grid = row[:, :, 0] * x + (row[:, :, 1] * y + row[:, :, 2])
    out = functional.grid_sample(
        pixels.float(), grid.permute(0, 2, 3, 1), padding_mode=padding, align_corners=False
    )
    return out.clamp_(0, 1).to(pixels.dtype)

"""How far positions reach: of tokens, and of pixels, where learned ones are interpolated."""

import copy
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from finetune.errors import UserError


def most_tokens(config: Any) -> int:
    """How many tokens a text may have; a number beyond all where the config says none."""
    # By attribute: GPT-2 and others have it under a name of their own.
    return getattr(config, "max_position_embeddings", 10**9)


def side(config: Any) -> int | None:
    """The side in pixels of the images that a config was made for; None where it says none."""
    size = getattr(config, "image_size", None)
    return size[0] if isinstance(size, list | tuple) else size


def fit(model: PreTrainedModel, auto: Any, pixels: int) -> PreTrainedModel:
    """The model for images of ``pixels`` a side, its position embeddings interpolated.

    In the weights and in the config, as bicubic as transformers does it while running, so that
    whoever loads the model later needs no argument.

    Args:
        auto: the task's class, for example ``AutoModelForImageClassification``.

    Raises:
        UserError: something else than position embeddings depends on the resolution.
    """
    config = copy.deepcopy(model.config)
    config.image_size = pixels
    made = auto.from_config(config)
    weights, wanted = model.state_dict(), made.state_dict()
    for name, tensor in weights.items():
        if tensor.shape == wanted[name].shape:
            continue
        if "position_embedding" not in name:
            raise UserError(
                f"{config.model_type}: its {name} is made for {side(model.config)} pixels; leave "
                "out image_size"
            )
        weights[name] = _interpolated(tensor, wanted[name].shape[1])
    made.load_state_dict(weights)
    return made


def _interpolated(table: torch.Tensor, tokens: int) -> torch.Tensor:
    """(1, S + G², D) -> (1, ``tokens``, D): S special tokens stay, the grid of patches grows."""
    grid = int(table.shape[1] ** 0.5)
    special = table.shape[1] - grid**2
    new = int((tokens - special) ** 0.5)
    patches = table[:, special:].reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
    patches = functional.interpolate(patches, (new, new), mode="bicubic", align_corners=False)
    patches = patches.permute(0, 2, 3, 1).reshape(1, new**2, -1)
    return torch.cat([table[:, :special], patches], 1)

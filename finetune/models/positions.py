"""Limits of a model's positions: tokens of a text, and pixels of an image (interpolated)."""

import copy
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from finetune.errors import UserError

# Model types that number a text's tokens from the row after the padding token's id: of RoBERTa's
# 514 rows 512 are for tokens.
AFTER_PADDING = {
    *("camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke"),
    *("markuplm", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl"),
    "xmod",
}


def most_tokens(config: Any) -> int:
    """Returns the most tokens that a text may have; 10**9 if the config names no limit."""
    # Read as an attribute: the configs of GPT-2 and others map this name to their own.
    rows = getattr(config, "max_position_embeddings", 10**9)
    if config.model_type not in AFTER_PADDING:
        return rows
    # transformers' MPNet has its padding at 1, whatever the config says.
    padding = 1 if config.model_type == "mpnet" else config.pad_token_id
    return rows - padding - 1


def side(config: Any) -> int | None:
    """Returns the side in pixels of a config's images; None if it names none."""
    size = getattr(config, "image_size", None)
    return size[0] if isinstance(size, list | tuple) else size


def fit(model: PreTrainedModel, auto: Any, pixels: int) -> PreTrainedModel:
    """Returns the model for images of ``pixels`` x ``pixels``, its position embeddings resized.

    Interpolates bicubically, as ``interpolate_pos_encoding=True`` does in transformers, but once:
    weights and config change, so that loading the model later needs no argument.

    Args:
        auto: the task's class, for example ``AutoModelForImageClassification``.

    Raises:
        UserError: a weight other than the position embeddings depends on the resolution.
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
                f"{config.model_type}: its weight {name} depends on images of {side(model.config)} "
                "pixels; leave image_size out"
            )
        weights[name] = _interpolated(tensor, wanted[name].shape[1])
    made.load_state_dict(weights)
    return made


def _interpolated(table: torch.Tensor, tokens: int) -> torch.Tensor:
    """Resizes the grid of patches: (1, S + G², D) -> (1, ``tokens``, D); S special tokens stay."""
    grid = int(table.shape[1] ** 0.5)
    special = table.shape[1] - grid**2
    new = int((tokens - special) ** 0.5)
    patches = table[:, special:].reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
    patches = functional.interpolate(patches, (new, new), mode="bicubic", align_corners=False)
    patches = patches.permute(0, 2, 3, 1).reshape(1, new**2, -1)
    return torch.cat([table[:, :special], patches], 1)

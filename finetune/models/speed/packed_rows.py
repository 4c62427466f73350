"""Packed batches under flash attention: the rows of a batch become one row.

transformers (5.23) tells the documents of a packed row apart by their positions. For flash
attention it does so in batches of one row only: in larger ones, every token attends to all earlier
tokens of its row, whatever document they are of.

- ``keeps_apart`` tests this on the model itself, in batches of one row and of several.
- Where documents mix, the rows (B, T) that reach the encoder are joined to one row (1, B * T), and
  its output is split again (``JoinedRows``); then the test has to pass.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.generic import is_flash_attention_requested

from finetune.data import packing
from finetune.models import devices


def keeps_apart(model: PreTrainedModel, training: Mapping[str, Any]) -> bool:
    """Returns whether the model, perhaps with joined rows, keeps documents of a block apart.

    Args:
        training: the recipe's ``training`` section, for its device and precision.
    """
    with devices.as_trained(model, training) as tolerance:
        if packing.is_kept_apart(model, tolerance):
            return True
        if devices.is_replicated(training) or not is_flash_attention_requested(model.config):
            return False
        joined = JoinedRows(model.base_model)
        if packing.is_kept_apart(model, tolerance):
            return True
        joined.remove()
        return False


class JoinedRows:
    """Hooks that give an encoder the rows of a packed batch as one row, and split its output."""

    def __init__(self, encoder: nn.Module) -> None:
        self.names = list(inspect.signature(encoder.forward).parameters)
        # Rows of the current batch; 1 if it is left as it is.
        self.rows = 1
        self.hooks = [
            encoder.register_forward_pre_hook(self._join, with_kwargs=True),
            encoder.register_forward_hook(self._split),
        ]

    def _join(
        self, encoder: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Replaces every input (B, T) by one row (1, B * T), if the batch is packed."""
        given = dict(zip(self.names, arguments, strict=False)) | options
        ids, positions = given.get("input_ids"), given.get("position_ids")
        self.rows = 1
        if ids is None or positions is None or positions.shape != ids.shape:
            return None
        if given.get("attention_mask") is not None or given.get("past_key_values") is not None:
            return None
        self.rows = len(ids)
        return (), {
            name: value.reshape(1, -1)
            if isinstance(value, torch.Tensor) and value.shape == ids.shape
            else value
            for name, value in given.items()
        }

    def _split(self, encoder: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        """Splits the last states (1, B * T, H) into rows (B, T, H)."""
        if self.rows > 1:
            output.last_hidden_state = output.last_hidden_state[0].unflatten(0, (self.rows, -1))

    def remove(self) -> None:
        """Removes the hooks; the encoder gets the rows of a batch again."""
        for hook in self.hooks:
            hook.remove()

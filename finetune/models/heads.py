"""The head of a classifier: its last layer, and that of a checkpoint with the same labels."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from finetune.errors import UserError


def order(before: Sequence[str], names: Sequence[str]) -> list[int] | None:
    """Returns where each of ``names`` stands in ``before``, whatever their case.

    None if they are not the same names, or two of them differ in case only.
    """
    ours, theirs = ([name.strip().casefold() for name in each] for each in (names, before))
    if len({*ours}) != len(ours) or sorted(ours) != sorted(theirs):
        return None
    return [theirs.index(name) for name in ours]


def output_layers(model: PreTrainedModel) -> list[nn.Linear]:
    """Returns the last linear layer of each part of a classifier's head, one in most models.

    Raises:
        UserError: no layer of the head has an output for each class.
    """
    last, count = [], model.config.num_labels
    for name, child in model.named_children():
        if name != model.base_model_prefix:
            layers = [m for m in child.modules() if isinstance(m, nn.Linear)]
            last += [layer for layer in layers if layer.out_features == count][-1:]
    if not last:
        raise UserError(
            f"{model.config.model_type}: its head has no linear layer with {count} outputs"
        )
    return last


@torch.no_grad()
def reorder(model: PreTrainedModel, rows: list[int]) -> None:
    """Puts the classes of a model's head in another order, in place.

    Args:
        rows: the row of the present head for each row of the new one.

    Raises:
        UserError: no layer of the head has an output for each class.
    """
    try:
        layers = output_layers(model)
    except UserError as error:
        raise UserError(
            f"{error}, so it cannot follow the labels' order; name the labels in the checkpoint's "
            "order"
        ) from None
    for layer in layers:
        layer.weight.copy_(layer.weight[rows].clone())
        if layer.bias is not None:
            layer.bias.copy_(layer.bias[rows].clone())


@torch.no_grad()
def scale(model: PreTrainedModel, factor: float) -> None:
    """Multiplies the logits of a model whose head ends in a linear layer, in place.

    Raises:
        UserError: no layer of the head has an output for each class.
    """
    for layer in output_layers(model):
        layer.weight.mul_(factor)
        if layer.bias is not None:
            layer.bias.mul_(factor)

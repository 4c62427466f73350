"""A model's parameters: trainable ones, their saved state, counts, layer-wise decay groups."""

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

LAYER_INDEX = re.compile(r"\.(?:layer|layers|h|blocks?)\.(\d+)\.")


def layer_of(name: str, layers: int) -> int:
    """Returns a parameter's layer: 0 for embeddings, 1 to ``layers``, ``layers`` + 1 for heads."""
    found = LAYER_INDEX.search(name)
    if found:
        return int(found[1]) + 1
    return 0 if "embed" in name else layers + 1


def parameter_groups(
    model: nn.Module, decayed: set[str], learning_rate: float, weight_decay: float, decay: float
) -> list[dict[str, Any]]:
    """Returns optimizer groups with layer-wise learning rate decay (Sun et al. 2019, 5.3.3).

    The head gets ``learning_rate``, and each layer towards the input ``decay`` times that of the
    one above it.

    Args:
        decayed: names of the parameters that get weight decay.
    """
    layers = max((layer_of(n, -1) for n, _ in model.named_parameters()), default=0)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in trainable(model):
        groups.setdefault((layer_of(name, layers), name in decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * decay ** (layers + 1 - layer),
            "weight_decay": weight_decay if has_decay else 0.0,
        }
        for (layer, has_decay), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Returns the trainable parameters with their names."""
    return ((n, p) for n, p in model.named_parameters() if p.requires_grad)


def trained_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns what training changes: trainable parameters and saved buffers, not copied.

    Checkpoints store this instead of peft's files, which lack the weights that produce the virtual
    tokens of a prompt method.
    """
    saved = model.state_dict()
    buffers = {name: b for name, b in model.named_buffers() if name in saved}
    return {**dict(trainable(model)), **buffers}


@torch.no_grad()
def load_trained_state(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Copies the tensors of ``trained_state`` into the model, bit for bit.

    Raises:
        ValueError: the names, shapes or types are not this model's; then nothing is copied.
    """
    own = trained_state(model)
    different = sorted(own.keys() ^ tensors.keys())
    different += [n for n, t in tensors.items() if n in own and own[n].shape != t.shape]
    different += [n for n, t in tensors.items() if n in own and own[n].dtype != t.dtype]
    if different:
        raise ValueError(f"{different[0]} differs")
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Returns ``trainable_parameters`` and ``total_parameters``; shared tensors count once."""
    return {
        "trainable_parameters": sum(p.numel() for _, p in trainable(model)),
        "total_parameters": sum(p.numel() for p in model.parameters()),
    }

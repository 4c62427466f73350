"""A model's parameters: trainable ones, their saved state, counts, layer-wise decay groups."""

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from finetune.errors import UserError

# A layer's place in its parameters' names: a numbered layer, or a stage and a numbered layer in it.
LAYER = re.compile(
    r"\.(?:layer|layers|h|blocks?|stages|albert_layer_groups)\.(\d+)"
    r"(?:\.(?:blocks|layers|albert_layers)\.(\d+))?(?=\.)"
)


def layers_of(model: nn.Module) -> dict[str, int]:
    """Returns each parameter's layer: 0 for embeddings, 1 to L for layers, L + 1 for heads.

    - What is registered before the first layer is an embedding, and so is what is called one beside
      the layers (DeBERTa's relative positions). What is registered after the last belongs to the
      head, a final norm for example.
    - A stage of a hierarchical model (Swin, ConvNeXt, ResNet) has several layers. What lies between
      two of them, such as downsampling, belongs to the one before in the same stage, if there is
      one, else to the stage's first.
    - ALBERT's layers share their weights, and count as one.

    Raises:
        UserError: no layers are found.
    """
    names = [name for name, _ in model.named_parameters()]
    found = {name: match for name in names if (match := LAYER.search(f".{name}"))}
    if not found:
        raise UserError(f"layer_decay: {type(model).__name__} has no numbered layers; leave it out")
    # By stage and layer; a layer of -1 stands for what lies between a stage's layers.
    places = {n: (int(m[1]), -1 if m[2] is None else int(m[2])) for n, m in found.items()}
    hierarchical = {stage for stage, layer in places.values() if layer >= 0}
    ordered = sorted({(s, k) for s, k in places.values() if k >= 0 or s not in hierarchical})
    first = next(iter(found))
    start, beside = names.index(first), first[: max(0, found[first].start())]
    out, place = {}, ordered[0]
    for i, name in enumerate(names):
        if name in places:
            stage, before = places[name][0], place
            place = places[name]
            if place not in ordered:
                place = before if before[0] == stage else next(p for p in ordered if p[0] == stage)
            out[name] = 1 + ordered.index(place)
        elif i < start or ("embed" in name and name.startswith(beside)):
            out[name] = 0
        else:
            out[name] = len(ordered) + 1
    return out


def parameter_groups(
    model: nn.Module, decayed: set[str], learning_rate: float, weight_decay: float, decay: float
) -> list[dict[str, Any]]:
    """Returns optimizer groups with layer-wise learning rate decay (Sun et al. 2019, 5.3.3).

    The head gets ``learning_rate``, and each layer towards the input ``decay`` times that of the
    one above it.

    Args:
        decayed: names of the parameters that get weight decay.
    """
    layers = layers_of(model)
    head = max(layers.values())
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in trainable(model):
        groups.setdefault((layers[name], name in decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * decay ** (head - layer),
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


def not_finite(tensors: dict[str, torch.Tensor]) -> str | None:
    """Returns the name of a tensor with a value that is not finite; None without one."""
    for name, tensor in tensors.items():
        # Such a value makes the sum not finite, which needs no mask in memory.
        suspect = tensor.is_floating_point() and not bool(torch.isfinite(tensor.sum()))
        if suspect and not bool(torch.isfinite(tensor).all()):
            return name
    return None


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Returns ``trainable_parameters`` and ``total_parameters``; shared tensors count once."""
    return {
        "trainable_parameters": sum(p.numel() for _, p in trainable(model)),
        "total_parameters": sum(p.numel() for p in model.parameters()),
    }

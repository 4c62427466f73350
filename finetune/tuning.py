"""Which weights learn: full, head or an adapter; the one place that knows peft."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from finetune.errors import refuse_unknown
from finetune.recipe import Recipe, typed_as
from finetune.sources import Checkpoint

PLAIN_METHODS = ["full", "head"]
# Defaults by peft's own option names, over peft's own; a recipe's options go over both.
ADAPTER_DEFAULTS: dict[str, dict[str, Any]] = {
    "lora": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear"},
}
LAYER_INDEX = re.compile(r"\.(?:layer|layers|h|blocks?)\.(\d+)\.")


def head_modules(model: PreTrainedModel) -> list[str]:
    """Names of the modules that are the task's, not the pretrained trunk's.

    Everything beside the trunk, and the trunk's pooler: it feeds nothing but the head, and many
    checkpoints come without one.
    """
    prefix = model.base_model_prefix
    beside = [
        name
        for name, child in model.named_children()
        if name != prefix and list(child.parameters())
    ]
    pooler = [
        f"{prefix}.pooler" for name, _ in model.base_model.named_children() if name == "pooler"
    ]
    return pooler + beside


def check(recipe: Recipe) -> None:
    """Refuse an unknown method or option before any weight loads.

    Raises:
        Refusal: naming the nearest method or option.
    """
    method, options = recipe.tuning.method, recipe.tuning.options
    known = [*PLAIN_METHODS, *ADAPTER_DEFAULTS]
    if method not in known:
        refuse_unknown(method, known, f"{recipe.where('tuning.method')}: tuning method")
    if method in PLAIN_METHODS:
        for option in options:
            place = recipe.where(f"tuning.{option}")
            refuse_unknown(option, ["method", "layer_decay"], f"{place}: tuning key")
    else:
        typed_as(_config_class(method), options, "tuning", recipe.origin)


def _config_class(method: str) -> type:
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType

    return PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(method.upper())]


def apply(model: PreTrainedModel, recipe: Recipe, checkpoint: Checkpoint) -> nn.Module:
    """The model with only the recipe's weights set to learn; wrapped by peft for an adapter."""
    method = recipe.tuning.method
    if method == "full":
        return model
    heads = head_modules(model)
    if method == "head":
        for name, parameter in model.named_parameters():
            parameter.requires_grad = any(name.startswith(f"{head}.") for head in heads)
        return model

    from peft import get_peft_model

    cls = _config_class(method)
    options = typed_as(cls, recipe.tuning.options, "tuning", recipe.origin)
    # peft knows which heads to save only for some task types, and never the pooler.
    names = [head.rpartition(".")[2] for head in heads]
    config = cls(**ADAPTER_DEFAULTS[method] | {"modules_to_save": names} | options)
    adapted = get_peft_model(model, config)
    if checkpoint.revision:
        # A cache folder means nothing elsewhere; the hub id and its commit do.
        config.base_model_name_or_path, config.revision = checkpoint.name, checkpoint.revision
    return adapted


def load_adapter(base: PreTrainedModel, folder: Path) -> nn.Module:
    """The base with the adapter and head of ``folder`` on it, ready to predict."""
    from peft import PeftModel

    return PeftModel.from_pretrained(base, str(folder))


def layer_of(name: str, layers: int) -> int:
    """How far above the embeddings (0) a parameter stands; heads are at ``layers`` + 1."""
    found = LAYER_INDEX.search(name)
    if found:
        return int(found[1]) + 1
    return 0 if "embed" in name else layers + 1


def parameter_groups(
    model: nn.Module, decayed: set[str], learning_rate: float, weight_decay: float, decay: float
) -> list[dict[str, Any]]:
    """Optimizer groups with a learning rate that shrinks by ``decay`` a layer towards the input.

    Layer-wise decay as in Sun et al. 2019, section 5.3.3.

    Args:
        decayed: names of the parameters that take weight decay.
    """
    layers = max((layer_of(n, -1) for n, _ in model.named_parameters()), default=0)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in _learning(model):
        groups.setdefault((layer_of(name, layers), name in decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * decay ** (layers + 1 - layer),
            "weight_decay": weight_decay if takes else 0.0,
        }
        for (layer, takes), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def _learning(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((n, p) for n, p in model.named_parameters() if p.requires_grad)


def count_parameters(model: nn.Module) -> dict[str, int]:
    """``trainable_parameters`` and ``total_parameters``; shared tensors count once."""
    return {
        "trainable_parameters": sum(p.numel() for _, p in _learning(model)),
        "total_parameters": sum(p.numel() for p in model.parameters()),
    }

"""Which weights learn: full, head or an adapter; the one place that knows peft."""

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from finetune.errors import Refusal, refuse_unknown
from finetune.recipe import Recipe, typed_as
from finetune.sources import Checkpoint

# Methods that save a plain checkpoint; the others save an adapter folder.
PLAIN_METHODS = ["full", "head", "bitfit"]
# Over peft's own defaults, by its own option names; a recipe's options go over both. Methods that
# are not listed adapt every linear layer, where they take target modules at all.
ADAPTER_DEFAULTS: dict[str, dict[str, Any]] = {
    "lora": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear"},
    # Its feed-forward modules have to be among its targets: peft's own choice for the model.
    "ia3": {},
    "prompt_tuning": {"num_virtual_tokens": 20},
    "p_tuning": {"num_virtual_tokens": 20},
    "prefix_tuning": {"num_virtual_tokens": 20},
}
# Methods of peft that are not offered, and why. All others are, those of later releases too.
NOT_OFFERED = {
    "adalora": "it has to be told every step, which the runner does not do",
    "adaption_prompt": "it is for decoders like Llama only",
    "cpt": "it is for causal language models only",
    "multitask_prompt_tuning": "it needs a task id with every row",
    "poly": "it needs a task id with every row",
    "shadow": "it is for decoders only",
    "trainable_tokens": "it learns the vectors of named tokens, not a task",
    "xlora": "it mixes adapters that were trained before",
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


def adapter_methods() -> dict[str, type]:
    """The config class of every adapter method on offer: bottleneck, and peft's by peft's names."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    # Imported to make peft know it.
    from finetune import bottleneck_adapters

    assert bottleneck_adapters.PEFT_TYPE in PEFT_TYPE_TO_CONFIG_MAPPING
    # The keys are an enumeration of strings, and our own string.
    names = {str.lower(key): cls for key, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    return {name: cls for name, cls in sorted(names.items()) if name not in NOT_OFFERED}


def check(recipe: Recipe) -> None:
    """Refuse an unknown method or option before any weight loads.

    Raises:
        Refusal: naming the nearest method or option, or why a method is not offered.
    """
    method, options = recipe.tuning.method, recipe.tuning.options
    where = recipe.where("tuning.method")
    if method in NOT_OFFERED:
        raise Refusal(f"{where}: tuning method {method!r} is not offered: {NOT_OFFERED[method]}")
    if method in PLAIN_METHODS:
        for option in options:
            place = recipe.where(f"tuning.{option}")
            refuse_unknown(option, ["method", "layer_decay"], f"{place}: tuning key")
        return
    methods = adapter_methods()
    if method not in methods:
        refuse_unknown(method, [*PLAIN_METHODS, *methods], f"{where}: tuning method")
    typed_as(methods[method], options, "tuning", recipe.origin)


def apply(model: PreTrainedModel, recipe: Recipe, checkpoint: Checkpoint) -> nn.Module:
    """The model with only the recipe's weights set to learn; wrapped by peft for an adapter.

    Raises:
        Refusal: the method does not fit the model, in peft's words.
    """
    method = recipe.tuning.method
    if method == "full":
        return model
    heads = head_modules(model)
    if method in PLAIN_METHODS:
        for name, parameter in model.named_parameters():
            in_head = any(name.startswith(f"{head}.") for head in heads)
            parameter.requires_grad = in_head or (method == "bitfit" and name.endswith("bias"))
        return model

    from peft import get_peft_model

    cls = adapter_methods()[method]
    known = {f.name for f in fields(cls)}
    config = cls(
        **{k: v for k, v in _defaults(model, method, heads).items() if k in known}
        | typed_as(cls, recipe.tuning.options, "tuning", recipe.origin)
    )
    try:
        adapted = get_peft_model(model, config)
    except (ValueError, TypeError, NotImplementedError, AttributeError) as error:
        where = recipe.where("tuning.method")
        said = " ".join(str(error).split())
        raise Refusal(f"{where}: {method} does not fit {checkpoint.name}: {said}") from None
    if checkpoint.revision:
        # A cache folder means nothing elsewhere; the hub id and its commit do.
        config.base_model_name_or_path, config.revision = checkpoint.name, checkpoint.revision
    return adapted


def _defaults(model: PreTrainedModel, method: str, heads: list[str]) -> dict[str, Any]:
    """What this project tells a method where the recipe is silent; unknown keys are left out."""
    # peft knows which heads to save only for some task types, and never the pooler.
    saved = [head.rpartition(".")[2] for head in heads]
    norms = [name for name, module in model.named_modules() if _is_norm(module)]
    common = {"task_type": "SEQ_CLS", "modules_to_save": saved}
    if method == "bottleneck":
        return common | {"modules_to_save": saved + norms}
    if method == "ln_tuning":
        return common | {"target_modules": norms}
    return common | ADAPTER_DEFAULTS.get(method, {"target_modules": "all-linear"})


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm")


def load_adapter(base: PreTrainedModel, folder: Path) -> nn.Module:
    """The base with the adapter and head of ``folder`` on it, ready to predict."""
    from peft import PeftModel

    adapter_methods()

    return PeftModel.from_pretrained(base, str(folder))


def fold(model: nn.Module, method: str) -> PreTrainedModel:
    """The adapted model with its adapter folded into the base's weights, free of peft.

    Raises:
        Refusal: the method adds layers or tokens that no weight of the base can take up.
    """
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTuner

    assert isinstance(model, PeftModel)
    refusal = Refusal(f"{method} cannot be folded into the base's weights; serve it as an adapter")
    if not isinstance(model.base_model, BaseTuner):
        raise refusal
    try:
        return model.base_model.merge_and_unload(safe_merge=True)  # pyright: ignore
    except (NotImplementedError, AttributeError, ValueError):
        raise refusal from None


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

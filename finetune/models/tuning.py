"""Which weights learn: full, head or an adapter; the one place that knows peft."""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from finetune.data.sources import Checkpoint
from finetune.errors import UserError, refuse_unknown
from finetune.recipe import Recipe, Tuning, typed_as

# Methods that save a plain checkpoint; the others save an adapter folder.
PLAIN_METHODS = ["full", "head", "bitfit"]
# What a recipe gets that names no learning rate. Adapters: see recipes/rotten_tomatoes/README.md.
ADAPTER_LEARNING_RATE = 1e-3
LEARNING_RATES = {
    **{"full": 5e-5, "head": 3e-3, "bitfit": 1e-3},
    **{"ia3": 1e-2, "vera": 1e-2, "prefix_tuning": 1e-2, "prompt_tuning": 1e-2},
}
# Over peft's own defaults, by its own option names; a recipe's options go over both. Methods that
# are not listed adapt every linear layer, where they take target modules at all.
ADAPTER_DEFAULTS: dict[str, dict[str, Any]] = {
    "lora": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear"},
    # The steps of the run are told when it starts.
    "adalora": {"total_step": 10**9, "target_modules": "all-linear"},
    # Its feed-forward modules have to be among its targets: peft's own choice for the model.
    "ia3": {},
}
# Keys, values and the feed-forward output, for the architectures that peft's own list leaves out.
IA3_MODULES: dict[str, tuple[list[str], list[str]]] = {
    "electra": (["key", "value", "output.dense"], ["output.dense"]),
    "albert": (["key", "value", "ffn_output"], ["ffn_output"]),
    "distilbert": (["k_lin", "v_lin", "ffn.lin2"], ["ffn.lin2"]),
    "modernbert": (["attn.Wqkv", "mlp.Wo"], ["mlp.Wo"]),
    "vit": (["k_proj", "v_proj", "mlp.fc2"], ["mlp.fc2"]),
}
# Methods of peft that are not offered, and why. All others are, those of later releases too.
NOT_OFFERED = {
    "adaption_prompt": "it is for decoders like Llama only",
    "cpt": "it is for causal language models only",
    "multitask_prompt_tuning": "it needs a task id with every row",
    "poly": "it needs a task id with every row",
    "shadow": "it is for decoders only",
    "trainable_tokens": "it learns the vectors of named tokens, not a task",
    "xlora": "it mixes adapters that were trained before",
}
LAYER_INDEX = re.compile(r"\.(?:layer|layers|h|blocks?)\.(\d+)\.")


def writes(model: PreTrainedModel) -> bool:
    """Whether the model is a causal language model, which says what comes next."""
    return model.can_generate()


def head_modules(model: PreTrainedModel) -> list[str]:
    """Names of the modules that are the task's, not the pretrained trunk's.

    Everything beside the trunk, and the trunk's pooler: it feeds nothing but the head, and many
    checkpoints come without one. A language model has none: what stands beside its trunk was
    pretrained with it.
    """
    if writes(model):
        return []
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
    from finetune.models import bottleneck

    assert bottleneck.PEFT_TYPE in PEFT_TYPE_TO_CONFIG_MAPPING
    # The keys are an enumeration of strings, and our own string.
    names = {str.lower(key): cls for key, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    return {name: cls for name, cls in sorted(names.items()) if name not in NOT_OFFERED}


def is_prompt(method: str) -> bool:
    """Whether a method puts virtual tokens before the text, or before every layer's."""
    from peft import PromptLearningConfig

    return issubclass(adapter_methods().get(method, object), PromptLearningConfig)


def without_adapter(model: nn.Module) -> AbstractContextManager[Any]:
    """A context in which the model answers as its base does."""
    from peft import PeftModel

    return model.disable_adapter() if isinstance(model, PeftModel) else nullcontext()


def claim_flags(recipe: Recipe, known: set[str]) -> None:
    """Move the command line's options of the method from ``training``, where they land unknown.

    Args:
        known: the names of ``TrainingArguments``, which stay.
    """
    cls = adapter_methods().get(recipe.tuning.method)
    options = {f.name for f in fields(cls)} - known if cls else set()
    for name in options & set(recipe.training):
        if recipe.where(f"training.{name}").startswith("--"):
            recipe.tuning.options[name] = recipe.training.pop(name)
            recipe.origin[f"tuning.{name}"] = recipe.origin.pop(f"training.{name}")


def check(recipe: Recipe) -> None:
    """Refuse an unknown method or option before any weight loads.

    Raises:
        UserError: naming the nearest method or option, or why a method is not offered.
    """
    method, options = recipe.tuning.method, recipe.tuning.options
    where = recipe.where("tuning.method")
    kind = recipe.model.quantization
    if kind and method in PLAIN_METHODS:
        raise UserError(
            f"{recipe.where('model.quantization')}: weights in {kind} do not learn; take an "
            "adapter, for example method: lora"
        )
    if kind and not find_spec("bitsandbytes"):
        raise UserError(
            f"{recipe.where('model.quantization')}: {kind} needs bitsandbytes: "
            "pip install 'finetune-recipes[quantization]'"
        )
    if method in NOT_OFFERED:
        raise UserError(f"{where}: tuning method {method!r} is not offered: {NOT_OFFERED[method]}")
    if method in PLAIN_METHODS:
        for option in options:
            place = recipe.where(f"tuning.{option}")
            known = [f.name for f in fields(Tuning) if not f.metadata.get("hidden")]
            refuse_unknown(option, known, f"{place}: tuning key")
        return
    methods = adapter_methods()
    if method not in methods:
        refuse_unknown(method, [*PLAIN_METHODS, *methods], f"{where}: tuning method")
    typed_as(methods[method], options, "tuning", recipe.origin)


def learning_rate(method: str) -> float:
    """The learning rate for recipes that name none."""
    return LEARNING_RATES.get(method, ADAPTER_LEARNING_RATE)


def fitting(action: Callable[[], Any], recipe: Recipe, checkpoint: Checkpoint) -> Any:
    """What ``action`` returns; peft's and torch's complaints become one line."""
    try:
        return action()
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        said = " ".join(str(error).split())
        if "meta tensor" in said.lower():
            raise
        where, method = recipe.where("tuning.method"), recipe.tuning.method
        raise UserError(f"{where}: {method} does not fit {checkpoint.name}: {said}") from None


def apply(model: PreTrainedModel, recipe: Recipe, checkpoint: Checkpoint) -> nn.Module:
    """The model with only the recipe's weights set to learn; wrapped by peft for an adapter.

    Raises:
        UserError: the method does not fit the model, in peft's words.
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

    from peft import PromptLearningConfig, get_peft_model, prepare_model_for_kbit_training

    cls = adapter_methods()[method]
    if issubclass(cls, PromptLearningConfig) and model.main_input_name != "input_ids":
        where = recipe.where("tuning.method")
        raise UserError(
            f"{where}: {method} puts tokens before a text; {checkpoint.name} reads none"
        )
    known = {f.name for f in fields(cls)}
    defaults = {k: v for k, v in _defaults(model, method, cls, heads).items() if k in known}
    options = typed_as(cls, recipe.tuning.options, "tuning", recipe.origin)
    if getattr(model, "is_quantized", False):
        checkpointing = bool(recipe.training.get("activation_checkpointing", False))
        model = prepare_model_for_kbit_training(model, checkpointing)
    config: Any = fitting(lambda: cls(**defaults | options), recipe, checkpoint)
    adapted = fitting(lambda: get_peft_model(model, config), recipe, checkpoint)
    if checkpoint.gguf:
        # The folder alone names no checkpoint.
        own = Path(checkpoint.name)
        config.base_model_name_or_path = str(own.resolve() if own.is_file() else own)
    elif checkpoint.revision:
        # A cache folder means nothing elsewhere; the hub id and its commit do.
        config.base_model_name_or_path, config.revision = checkpoint.name, checkpoint.revision
    return adapted


def _defaults(model: PreTrainedModel, method: str, cls: type, heads: list[str]) -> dict[str, Any]:
    """What this project tells a method where the recipe is silent; unknown keys are left out."""
    from peft import PromptLearningConfig

    # peft knows which heads to save only for some task types, and never the pooler.
    saved = [head.rpartition(".")[2] for head in heads]
    norms = [
        name
        for name, module in model.named_modules()
        if _is_norm(module) and not any(name.startswith(f"{head}.") for head in heads)
    ]
    reads_text = model.main_input_name == "input_ids"
    task_type = "CAUSAL_LM" if writes(model) else "SEQ_CLS" if reads_text else None
    common = {"task_type": task_type, "modules_to_save": saved}
    if method == "bottleneck":
        return common | {"modules_to_save": saved + norms}
    if method == "ln_tuning":
        return common | {"target_modules": norms}
    if issubclass(cls, PromptLearningConfig):
        # peft reads the widths by the names that BERT gives them; some tokens enter every layer.
        embeddings: Any = model.get_input_embeddings()
        inside = method in {"prefix_tuning", "cartridge"}
        return common | {
            "num_virtual_tokens": 20,
            "num_attention_heads": model.config.num_attention_heads,
            "token_dim": model.config.hidden_size if inside else embeddings.embedding_dim,
        }
    if method == "ia3" and model.config.model_type in IA3_MODULES:
        targets, feed_forward = IA3_MODULES[model.config.model_type]
        return common | {"target_modules": targets, "feedforward_modules": feed_forward}
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
        UserError: the method adds layers or tokens that no weight of the base can take up.
    """
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTuner

    assert isinstance(model, PeftModel)
    refusal = UserError(
        f"{method} cannot be folded into the base's weights; serve it as an adapter"
    )
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
    for name, parameter in learning(model):
        groups.setdefault((layer_of(name, layers), name in decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * decay ** (layers + 1 - layer),
            "weight_decay": weight_decay if takes else 0.0,
        }
        for (layer, takes), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def learning(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((n, p) for n, p in model.named_parameters() if p.requires_grad)


def learned(model: nn.Module) -> dict[str, torch.Tensor]:
    """What training changes, by name and not copied: weights that learn, and what is counted.

    peft's own files leave out what makes the virtual tokens of a prompt method.
    """
    saved = model.state_dict()
    counted = {name: b for name, b in model.named_buffers() if name in saved}
    return {**dict(learning(model)), **counted}


@torch.no_grad()
def load_learned(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Set what ``learned`` gave, to the bit.

    Raises:
        ValueError: the names, shapes or types are not this model's; nothing was set then.
    """
    own = learned(model)
    odd = sorted(own.keys() ^ tensors.keys())
    odd += [n for n, t in tensors.items() if n in own and own[n].shape != t.shape]
    odd += [n for n, t in tensors.items() if n in own and own[n].dtype != t.dtype]
    if odd:
        raise ValueError(f"{odd[0]} differs")
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


def count_parameters(model: nn.Module) -> dict[str, int]:
    """``trainable_parameters`` and ``total_parameters``; shared tensors count once."""
    return {
        "trainable_parameters": sum(p.numel() for _, p in learning(model)),
        "total_parameters": sum(p.numel() for p in model.parameters()),
    }

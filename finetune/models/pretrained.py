"""Checkpoints under a new head, in full precision or few bits; shared by several adapters."""

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from finetune.data.sources import Checkpoint
from finetune.errors import UserError
from finetune.models import positions, tuning
from finetune.recipe import Recipe


def load(auto: Any, checkpoint: Checkpoint, config: Any, recipe: Recipe) -> PreTrainedModel:
    """The checkpoint's weights under a new head, loaded once the recipe's tuning is known to fit.

    Args:
        auto: the task's class, for example ``AutoModelForSequenceClassification``.
        config: the checkpoint's, with the task's labels.

    Raises:
        UserError: the tuning does not fit the model, or the quantization does not work here.
    """
    # Shapes without memory: what cannot work shows before gigabytes are read.
    try:
        empty = _empty(auto, config)
    except (ValueError, ImportError) as error:
        named = recipe.model.config.get("attn_implementation")
        if not named:
            raise
        where = f"{recipe.where('model.config')}: attn_implementation {named}"
        raise UserError(f"{where}: {' '.join(str(error).split())}") from None
    heads = tuning.head_modules(empty)
    try:
        with torch.device("meta"):
            _pass(tuning.apply(empty, recipe, checkpoint), empty, recipe, checkpoint)
    except RuntimeError as error:
        # Some methods look at values when they start; those show once there are any.
        if "meta tensor" not in str(error).lower():
            raise
    if checkpoint.is_new:
        return auto.from_config(config)
    # The checkpoint's own resolution first, else its positions would come out random.
    pixels, own = positions.side(config), copy.deepcopy(config)
    if pixels:
        own.image_size = AutoConfig.from_pretrained(checkpoint.folder).image_size
    model = auto.from_pretrained(
        checkpoint.folder,
        **checkpoint.options,
        config=own,
        dtype=torch.float32,
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        quantization_config=_quantization(recipe, checkpoint, heads),
    )
    if pixels and pixels != positions.side(own):
        model = positions.fit(model, auto, pixels)
    for module in model.modules():
        # On a CPU bitsandbytes repacks 4-bit weights at the first evaluation and rounds their
        # scales: what answers would not be what was trained.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False
    return model


def _quantization(recipe: Recipe, checkpoint: Checkpoint, heads: list[str]) -> Any:
    """transformers' config for how the weights are held, the heads left as they are; or None."""
    kind = recipe.model.quantization
    if checkpoint.gguf:
        from transformers import GgufConfig

        if kind:
            raise UserError(
                f"{recipe.where('model.quantization')}: {checkpoint.name} is a file of few bits, "
                "which is read into full precision; leave the quantization out"
            )
        return GgufConfig(dequantize=True)
    if kind is None:
        return None
    from transformers import BitsAndBytesConfig

    compute = torch.bfloat16 if recipe.training.get("bf16") else torch.float32
    return BitsAndBytesConfig(
        load_in_4bit=kind == "nf4",
        load_in_8bit=kind == "int8",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=compute,
        # Said to be none, it would take a language model's output layer too.
        llm_int8_skip_modules=heads or None,
    )


def _empty(auto: Any, config: Any) -> PreTrainedModel:
    """The model of a config with shapes but no memory."""
    with torch.device("meta"):
        return auto.from_config(config)


def with_trunk_of(base: PreTrainedModel, auto: Any, config: Any) -> PreTrainedModel:
    """A model whose trunk shares ``base``'s weights, with a head of ``config``'s still to load."""
    model = _empty(auto, config)
    for name, child in model.named_children():
        if name != model.base_model_prefix:
            child.to_empty(device=base.device)
    shared: dict[int, Any] = {id(t): t for t in [*base.parameters(), *base.buffers()]}
    setattr(model, model.base_model_prefix, copy.deepcopy(base.base_model, shared))
    return model


def _pass(model: nn.Module, empty: PreTrainedModel, recipe: Recipe, checkpoint: Checkpoint) -> None:
    """One forward pass of an adapted model without memory: some misfits only show there."""
    if empty.main_input_name == "input_ids":
        ids = torch.ones(2, 8, dtype=torch.long)
        tuning.fitting(lambda: model(input_ids=ids, attention_mask=ids), recipe, checkpoint)

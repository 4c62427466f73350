"""Loads checkpoints with a task's head, in full precision or quantized.

- The config is built without memory first (torch's meta device), and the tuning method is applied
  to it, so that what does not fit is rejected before gigabytes of weights are read.
- Position embeddings of images are resized if the recipe asks for another resolution.
- Several adapters can share one base model's weights in memory (``with_shared_base``).
"""

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.utils.generic import is_flash_attention_requested

from finetune.data.sources import Checkpoint
from finetune.errors import UserError
from finetune.models import configs, devices, heads, positions, tuning
from finetune.recipe import Recipe


def load(auto: Any, checkpoint: Checkpoint, config: Any, recipe: Recipe) -> PreTrainedModel:
    """Loads the checkpoint's weights with a new head, after checking that the tuning fits.

    Args:
        auto: the task's class, for example ``AutoModelForSequenceClassification``.
        config: the checkpoint's config, with the task's labels.

    Raises:
        UserError: the tuning does not fit the model, or the quantization does not work here.
    """
    tuning.check_start(recipe, checkpoint)
    empty = _checked_empty(auto, config, recipe)
    head = tuning.head_modules(empty)
    try:
        with torch.device("meta"):
            # An adapter that goes on has fitted its base before.
            adapted = empty if checkpoint.adapter else tuning.apply(empty, recipe, checkpoint)
            _try_forward(adapted, empty, recipe, checkpoint)
    except RuntimeError as error:
        # Some methods read values when they start; their errors show after loading.
        if "meta tensor" not in str(error).lower():
            raise
    if checkpoint.is_new:
        return auto.from_config(config)
    # Load at the checkpoint's own resolution, else its position embeddings would be random.
    pixels, own = positions.side(config), copy.deepcopy(config)
    if pixels:
        own.image_size = AutoConfig.from_pretrained(checkpoint.folder).image_size
    # For the same reason at its own number of tokens.
    added = configs.added_tokens(config, checkpoint)
    if added:
        own.vocab_size = added.start
    model = auto.from_pretrained(
        checkpoint.folder,
        **checkpoint.options,
        config=own,
        dtype=torch.float32,
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        quantization_config=_quantization(recipe, checkpoint, head),
        device_map=_device_map(recipe),
    )
    if pixels and pixels != positions.side(own):
        model = positions.fit(model, auto, pixels)
    if added:
        model.resize_token_embeddings(added.stop)
    names = configs.head_names(checkpoint)
    rows = heads.order(names, list(config.id2label.values())) if names else None
    if rows and rows != sorted(rows):
        heads.reorder(model, rows)
    for module in model.modules():
        # On a CPU bitsandbytes repacks 4-bit weights at the first evaluation and rounds their
        # scales, so that the evaluated model would differ from the trained one.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False
    return model


def _quantization(recipe: Recipe, checkpoint: Checkpoint, head: list[str]) -> Any:
    """Returns transformers' quantization config, or None; the head is not quantized."""
    kind = recipe.model.quantization
    if checkpoint.gguf:
        from transformers import GgufConfig

        if kind:
            raise UserError(
                f"{recipe.where('model.quantization')}: {checkpoint.name} is a GGUF file, "
                "which is dequantized when it is read; leave quantization out"
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
        # With an empty list transformers would quantize a language model's output layer too.
        llm_int8_skip_modules=head or None,
    )


def _device_map(recipe: Recipe) -> dict[str, str] | None:
    """Returns where quantized weights are loaded; None leaves it to transformers.

    transformers chooses CUDA or XPU where there is one, even for training on the CPU, and else the
    CPU, even for training on MPS.
    """
    device = devices.current(bool(recipe.training.get("use_cpu")))
    chosen = recipe.model.quantization and device.type in {"cpu", "mps"}
    return {"": device.type} if chosen else None


def _checked_empty(auto: Any, config: Any, recipe: Recipe) -> PreTrainedModel:
    """Builds a config's model on the meta device, with an attention that computes there.

    Raises:
        UserError: the attention implementation that the recipe names does not work here.
    """
    named = recipe.model.config.get("attn_implementation")
    where = f"{recipe.where('model.config')}: attn_implementation {named}"
    # flash-attn, by whatever package; other kernels have other needs.
    packaged = is_flash_attention_requested(config, version=[2, 3, 4])
    if packaged and (lacks := devices.without_flash(recipe.training)):
        raise UserError(f"{where} {lacks}; change that, or take sdpa, which runs everywhere")
    try:
        empty = _empty(auto, config)
    except (ValueError, ImportError, OSError) as error:
        if not named:
            raise
        raise UserError(f"{where}: {' '.join(str(error).split())}") from None
    if not is_flash_attention_requested(config):
        return empty
    # Kernels of flash attention run on a GPU only, and this model is only for its shapes.
    plain = copy.deepcopy(config)
    plain._attn_implementation = "eager"
    return _empty(auto, plain)


def _empty(auto: Any, config: Any) -> PreTrainedModel:
    """Builds a config's model on the meta device: shapes without memory."""
    with torch.device("meta"):
        return auto.from_config(config)


def with_shared_base(base: PreTrainedModel, auto: Any, config: Any) -> PreTrainedModel:
    """Builds ``config``'s model around ``base``'s encoder weights, which it shares.

    The head's weights are uninitialized: an adapter's saved head is loaded into them.
    """
    model = _empty(auto, config)
    for name, child in model.named_children():
        if name != model.base_model_prefix:
            child.to_empty(device=base.device)
    shared: dict[int, Any] = {id(t): t for t in [*base.parameters(), *base.buffers()]}
    setattr(model, model.base_model_prefix, copy.deepcopy(base.base_model, shared))
    return model


def _try_forward(
    model: nn.Module, empty: PreTrainedModel, recipe: Recipe, checkpoint: Checkpoint
) -> None:
    """Runs one forward pass on the meta device; some methods fail only there."""
    if empty.main_input_name == "input_ids":
        ids = torch.ones(2, 8, dtype=torch.long)
        inputs = {"input_ids": ids, "attention_mask": ids}
        if empty.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids
        tuning.or_user_error(lambda: model(**inputs), recipe, checkpoint)

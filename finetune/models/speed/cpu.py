"""Prepares a model for training on a CPU: peft's LoRA layers compute one matrix product."""

from torch import nn
from transformers import PreTrainedModel


def prepare(model: nn.Module) -> None:
    """Makes a model train faster on a CPU; what it saves stays the same."""
    # peft is imported only for models with an adapter, which are peft's own class.
    if isinstance(model, PreTrainedModel):
        return
    from finetune.models.speed.merged_lora import LoraLinear, PeftLinear

    for module in model.modules():
        if type(module) is PeftLinear:
            module.__class__ = LoraLinear

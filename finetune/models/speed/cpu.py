"""Prepares a model for training on a CPU: memory kept between steps, LoRA as one product.

- ``keep_memory`` stops glibc from returning freed memory to the system after every step.
- peft's LoRA layers compute one matrix product (``merged_lora.py``).
"""

import ctypes
import platform

from torch import nn
from transformers import PreTrainedModel

# mallopt's parameters, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def prepare(model: nn.Module) -> None:
    """Makes a model train faster on a CPU; what it saves stays the same."""
    keep_memory()
    # peft is imported only for models with an adapter, which are peft's own class.
    if isinstance(model, PreTrainedModel):
        return
    from finetune.models.speed.merged_lora import LoraLinear, PeftLinear

    for module in model.modules():
        if type(module) is PeftLinear:
            module.__class__ = LoraLinear


def keep_memory() -> None:
    """Makes glibc keep freed memory for the next step, which needs as much again.

    By default glibc returns large blocks to the system, which clears them page by page when they
    are allocated again. Other allocators are not changed.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)

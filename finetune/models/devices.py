"""Where and how a model is computed: its device, its precision, and what the device's kernels need.

Everything that runs a model outside of the Trainer (checks before training, features, samples,
predictions) asks this module, so that it runs where and as the model trains.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from torch import nn
from transformers import PreTrainedModel


def current(use_cpu: bool = False) -> torch.device:
    """Returns this process's accelerator (CUDA, MPS, XPU and so on), or the CPU if it has none."""
    found = None if use_cpu else torch.accelerator.current_accelerator(check_available=True)
    return found or torch.device("cpu")


def half(training: Mapping[str, Any]) -> torch.dtype | None:
    """Returns the 16-bit type that a recipe's ``training`` section computes in; None for fp32."""
    if training.get("bf16"):
        return torch.bfloat16
    return torch.float16 if training.get("fp16") else None


@contextmanager
def as_trained(model: nn.Module, training: Mapping[str, Any]) -> Iterator[float]:
    """Runs a block with the model on the device and in the precision that it trains in.

    The model stays on that device.

    Yields:
        By how much equal computations may differ, relative to the largest value.
    """
    device, dtype = current(bool(training.get("use_cpu"))), half(training)
    # A quantized model is there already, and not every one can be moved.
    if next(model.parameters()).device.type != device.type:
        model.to(device)
    precision = torch.autocast(device.type, dtype) if dtype else nullcontext()
    bases = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    # A quantized model computes in 16 bits whatever its inputs.
    quantized = any("quantization_config" in vars(base.config) for base in bases)
    with precision:
        # In bf16 two ways to compute MiniLM's attention differed by up to 0.018.
        yield 5e-2 if dtype or quantized else 1e-4


def without_flash(training: Mapping[str, Any]) -> str:
    """Returns what the kernels of flash attention lack here; an empty string if nothing."""
    if training.get("use_cpu") or not torch.accelerator.is_available():
        return "needs a GPU"
    if torch.cuda.is_available() and torch.version.hip is None:
        major, minor = torch.cuda.get_device_capability()
        if major < 8:
            return (
                f"needs a GPU of compute capability 8.0 or more, and this one has {major}.{minor}"
            )
    return "" if half(training) else "needs bf16 or fp16"


def is_sharded() -> bool:
    """Returns whether accelerate's launcher asked to split the model over the processes (FSDP)."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP")


def is_replicated(training: Mapping[str, Any]) -> bool:
    """Returns whether the Trainer will copy the model to several GPUs of this one process.

    ``torch.nn.DataParallel`` runs the copies in threads. Hooks that keep something of a batch would
    mix up the copies' batches.
    """
    several = torch.cuda.is_available() and torch.cuda.device_count() > 1
    return several and not training.get("use_cpu") and not torch.distributed.is_initialized()

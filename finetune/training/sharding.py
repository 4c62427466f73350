"""A model that FSDP2 splits over processes: what works with it, and its checkpoints.

- accelerate's launcher asks for it (recipes/launch/fsdp2.yaml), and its plugin applies torch's
  ``fully_shard``. Weights, gradients and optimizer state are then ``DTensor``s, cut along their
  first dimension.
- Each process writes its parts by ``torch.distributed.checkpoint``, as safetensors with their
  places. A checkpoint can be read by any number of processes.
- Outside of a forward and backward pass a module's parameters are its parts only after ``reshard``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, parse_flag_from_env
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_parts
from torch.distributed.checkpoint.state_dict_saver import save as save_parts
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from finetune.errors import UserError
from finetune.models import devices, parameters
from finetune.recipe import Recipe

__all__ = ["CheckpointException"]
WEIGHTS, OPTIMIZER = "weights", "optimizer_state"
# Those that a test compares with one process.
METHODS = ("full", "lora")
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused")


def check(recipe: Recipe) -> None:
    """Checks, before any weight is read, that a run works if the launcher asks for a split model.

    Raises:
        UserError: DeepSpeed or FSDP1 is asked for, or the recipe has what does not work with FSDP2.
    """
    name, given = recipe.name, recipe.training
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        raise UserError(
            f"{name}: a run on DeepSpeed could not be resumed; split the model by FSDP2 instead: "
            "accelerate launch --config_file recipes/launch/fsdp2.yaml"
        )
    if not devices.is_sharded():
        return
    plugin = FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        raise UserError(f"{name}: FSDP1 is not offered; write fsdp_version: 2, as in fsdp2.yaml")
    if plugin.cpu_ram_efficient_loading:
        raise UserError(
            f"{name}: fsdp_cpu_ram_efficient_loading leaves new heads without weights in some "
            "processes; set it to false"
        )
    method, optim = recipe.tuning.method, str(given.get("optim", OPTIMIZERS[0]))
    for refused, what in (
        (method not in METHODS, f"method {method}; use {' or '.join(METHODS)}"),
        (optim not in OPTIMIZERS, f"optim {optim}; use {OPTIMIZERS[0]}"),
        (recipe.tuning.options.get("init_lora_weights", True) is not True, "init_lora_weights"),
        (recipe.tuning.ema_decay, "ema_decay"),
        (recipe.tuning.layer_decay < 1, "layer_decay"),
        (recipe.model.quantization, "quantization"),
        (recipe.classes.calibrate, "calibrate"),
        (recipe.distillation.teacher, "a teacher"),
        (recipe.auto_batch, "per_device_train_batch_size auto"),
        (given.get("fp16"), "fp16; use bf16"),
        (given.get("torch_compile"), "torch_compile"),
        (given.get("use_liger_kernel"), "use_liger_kernel"),
        (given.get("neftune_noise_alpha"), "neftune_noise_alpha"),
    ):
        if refused:
            raise UserError(f"{name}: FSDP2 does not work with {what}")


def enable_on_cpu(accelerator: Accelerator) -> None:
    """Lets processes on CPUs split the model, too, if the launcher asked for it.

    accelerate 1.15 would use DDP there without a word: it looks at ``ACCELERATE_USE_FSDP`` for
    accelerators only.
    """
    state: Any = accelerator.state
    if not devices.is_sharded() or state.distributed_type != DistributedType.MULTI_CPU:
        return
    state.fsdp_plugin = FullyShardedDataParallelPlugin()
    if state.mixed_precision != "no":
        state.fsdp_plugin.set_mixed_precision(state.mixed_precision)
    # The operations of accelerate, such as gather, ask the one, and the Trainer asks the other.
    state.distributed_type = DistributedType.FSDP
    cast(Any, PartialState()).distributed_type = DistributedType.FSDP


def choose_layers(accelerator: Accelerator, model: nn.Module) -> None:
    """Sets which layers are gathered one by one.

    accelerate 1.15 splits the embeddings of tokens by themselves, and BERT lists a module around
    them among its layers, which would split them twice.
    """
    base: Any = next(m for m in model.modules() if isinstance(m, PreTrainedModel))
    tokens = base.get_input_embeddings()
    around = {
        type(m).__name__ for m in base.modules() if any(each is tokens for each in m.modules())
    }
    plugin: Any = accelerator.state.fsdp_plugin
    plugin.transformer_cls_names_to_wrap = sorted({*base._no_split_modules} - around)


def reshard(model: nn.Module) -> None:
    """Frees the whole weights that the last forward pass left; parameters are parts again."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def not_finite(model: nn.Module) -> str | None:
    """Returns a weight with a value that is not finite in this process's part of it, or None."""
    reshard(model)
    own = parameters.trained_state(model).items()
    return parameters.not_finite(
        {name: each.to_local() if isinstance(each, DTensor) else each for name, each in own}
    )


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Writes this process's parts of the trained weights and the optimizer; in all processes.

    Raises:
        CheckpointException: of ``torch.distributed.checkpoint``, in all processes, if one fails.
    """
    reshard(model)
    _write(folder / WEIGHTS, parameters.trained_state(model))
    _write(folder / OPTIMIZER, _tensors(model, optimizer))


def _write(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_parts(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


def load_weights(folder: Path, model: nn.Module) -> None:
    """Reads the weights that ``save`` wrote, from any number of processes.

    Raises:
        ValueError: the names or shapes are not this model's.
    """
    reshard(model)
    own = parameters.trained_state(model)
    reader = HuggingFaceStorageReader(str(folder / WEIGHTS))
    saved = cast(Mapping[str, Any], reader.read_metadata().state_dict_metadata)
    different = sorted(own.keys() ^ saved.keys())
    different += [n for n, t in own.items() if n in saved and t.shape != saved[n].size]
    if different:
        raise ValueError(f"{different[0]} differs")
    load_parts(own, storage_reader=reader)


def read_optimizer(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[int, dict[str, torch.Tensor]]:
    """Returns ``state`` of the optimizer's state dict, from any number of processes."""
    reshard(model)
    reader = HuggingFaceStorageReader(str(folder / OPTIMIZER))
    saved = cast(Mapping[str, Any], reader.read_metadata().state_dict_metadata)
    weights, tensors = dict(model.named_parameters()), {}
    for key, found in saved.items():
        weight, dtype = weights[key.rpartition(".")[0]], found.properties.dtype
        # A tensor as large as its weight is split like it; a count of steps is not split.
        split = found.size == weight.shape
        empty = (
            torch.zeros_like(weight, dtype=dtype) if split else torch.zeros(found.size, dtype=dtype)
        )
        tensors[key] = empty.detach()
    load_parts(tensors, storage_reader=reader)
    ordered = (weight for group in optimizer.param_groups for weight in group["params"])
    places = {weight: place for place, weight in enumerate(ordered)}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, kind = key.rpartition(".")
        state.setdefault(places[weights[name]], {})[kind] = tensor
    return state


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Returns the optimizer's tensors by the name of their weight and their own."""
    names: dict[Any, str] = {weight: name for name, weight in model.named_parameters()}
    return {
        f"{names[weight]}.{kind}": tensor
        for weight, state in optimizer.state.items()
        for kind, tensor in state.items()
    }

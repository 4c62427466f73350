"""Several processes of one run: connects them, and lets them wait for one another.

- A collective (gradients, gathered outputs) fails when a process is later than the recipe's
  ``ddp_timeout``.
- Work of a single process that may take longer, such as scoring the test rows, is followed by
  ``wait``, whose group has no time limit.
- That group is on the CPU: what processes tell each other in it does not wait for a GPU.
"""

import functools
import os
import tempfile
import time
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from torch import distributed
from transformers import TrainingArguments

from finetune.errors import UserError
from finetune.recipe import Recipe
from finetune.training.arguments import has_accelerator

# Longer than any run.
NO_LIMIT = timedelta(days=365)
# A network file system may show a new file late.
VISIBLE_SECONDS = 3.0


def connect(recipe: Recipe) -> PartialState:
    """Connects the processes that a launcher started, with the recipe's time limit.

    Raises:
        UserError: its ``ddp_backend`` cannot be used, or there are several XLA devices.
    """
    given = recipe.training
    try:
        state = PartialState(
            cpu=bool(given.get("use_cpu", not has_accelerator())),
            backend=given.get("ddp_backend"),
            timeout=timedelta(seconds=given.get("ddp_timeout", TrainingArguments.ddp_timeout)),
        )
    except ValueError as error:
        raise UserError(f"{recipe.name}: training: {error}") from None
    if state.distributed_type == DistributedType.XLA and state.num_processes > 1:
        raise UserError(
            f"{recipe.name}: {state.num_processes} XLA processes cannot save a checkpoint "
            "together; train on one device, as recipes/launch/tpu.yaml does"
        )
    if distributed.is_initialized():
        _unlimited()
    return state


@functools.cache
def _unlimited() -> Any:
    return distributed.new_group(backend="gloo", timeout=NO_LIMIT)


def wait() -> None:
    """Waits until every process has come here, however long that takes."""
    if distributed.is_initialized():
        distributed.barrier(_unlimited())


def maxima(*values: float) -> list[float]:
    """Returns the maximum of each value over all processes."""
    if not distributed.is_initialized():
        return list(values)
    reduced = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(reduced, distributed.ReduceOp.MAX, _unlimited())
    return reduced.tolist()


def check_folder(folder: Path, main: bool) -> None:
    """Checks that all processes see one and the same folder.

    Raises:
        UserError: a process sees another one; in all processes.
    """
    if not distributed.is_initialized():
        return
    with (
        tempfile.NamedTemporaryFile(dir=folder, prefix=".shared-")
        if main
        else nullcontext() as file
    ):
        (name,) = broadcast_object_list([Path(file.name).name if file else None])
        blind = gather_object([not _appears(folder / str(name))])
    if any(blind):
        raise UserError(
            f"{folder}: process {blind.index(True)} has another folder of this name than process "
            "0; start all in the same folder, on several machines one of a file system that they "
            "share"
        )


def _appears(file: Path) -> bool:
    """Returns whether a file exists, or does so soon."""
    end = time.monotonic() + VISIBLE_SECONDS
    while not file.is_file():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def use_one_gpu(args: TrainingArguments) -> str | None:
    """Makes a process without a launcher use one GPU; returns a line about the others, if any.

    The Trainer would wrap the model in ``DataParallel``, whose replicas share what the model's
    hooks keep of a batch, and would multiply the losses of this project by the number of GPUs.
    """
    count = args.n_gpu
    if count <= 1:
        return None
    args._n_gpu = 1
    return (
        f"trains on one of {count} GPUs, {args.device}; "
        "`accelerate launch -m finetune train RECIPE` uses all of them"
    )


def check_accelerate(recipe: Recipe) -> None:
    """Checks that ``accelerate launch``, or its config file, asks for nothing but the recipe.

    It passes settings on as environment variables, which would change the run without a trace in
    its recipe.

    Raises:
        UserError: a setting contradicts the recipe.
    """
    given = recipe.training
    precision = "fp16" if given.get("fp16") else "bf16" if given.get("bf16") else "no"
    compiled = given.get("torch_compile") or given.get("torch_compile_backend")
    steps = str(given.get("gradient_accumulation_steps", 1))
    for name, own, flag in (
        ("MIXED_PRECISION", precision, "--{} true"),
        ("DYNAMO_BACKEND", "no", "--torch_compile_backend {}"),
        ("GRADIENT_ACCUMULATION_STEPS", steps, "--gradient_accumulation_steps {}"),
    ):
        theirs = os.environ.get(f"ACCELERATE_{name}", own).lower()
        # The recipe takes precedence over accelerate's defaults, and its compiler over any other.
        if theirs in {own, "no", "1"} or (name == "DYNAMO_BACKEND" and compiled):
            continue
        # A recipe has no fp8.
        advice = "" if theirs == "fp8" else f", and write {flag.format(theirs)} if you want it"
        raise UserError(
            f"{recipe.name}: accelerate is set to {name.lower()} {theirs}, and the recipe says "
            f"{own}; leave it out of `accelerate launch` and `accelerate config`{advice}"
        )

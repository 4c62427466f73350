"""Chooses the micro-batch that fits into memory, for ``per_device_train_batch_size: auto``."""

import os
from typing import Any, cast

import numpy
import psutil
import torch

from finetune.errors import TrainingError, UserError
from finetune.training import processes
from finetune.training.sampling import EpochRows
from finetune.training.trainer import StepTrainer

# Of the free memory; the rest is for temporary results and fragmentation.
SHARE = 0.8
# Adam's two moments of each trained weight, and its gradient.
COPIES = 3


class SavedTensors(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that forward passes keep for their backward pass, beside the weights.

    ``most`` is the largest number of all passes; ``end_pass`` is called after each.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(self._keep, lambda kept: kept)
        self.weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.kept: dict[int, int] = {}
        self.most = 0

    def end_pass(self) -> None:
        self.most = max(self.most, sum(self.kept.values()))
        self.kept.clear()

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self.kept[storage.data_ptr()] = storage.nbytes()
        return tensor


def choose(fixed: float, row: float, free: float, rows: int) -> tuple[int, int] | None:
    """Returns the largest micro-batch that fits, a divisor of a step's rows, and how many a step.

    Args:
        fixed: bytes that training allocates whatever the micro-batch: gradients, optimizer state.
        row: bytes of the activations of a row.
        free: bytes that may be allocated.
        rows: rows of a step, of one process.

    Returns:
        None if a single row does not fit.
    """
    sizes = (n for n in range(rows, 0, -1) if rows % n == 0 and fixed + n * row <= free)
    size = next(sizes, None)
    return None if size is None else (size, rows // size)


def free_bytes(device: torch.device) -> int:
    """Returns the free memory of a GPU, or this process's part of the machine's."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def row_bytes(trainer: StepTrainer) -> float:
    """Returns the bytes that the activations of a row need, from a pass of the longest rows."""
    data: Any = trainer.train_dataset
    lengths = numpy.asarray((data.rows if isinstance(data, EpochRows) else data)["length"])
    rows = numpy.argsort(-lengths, kind="stable")[:2].tolist()
    with trainer.trial() as run:
        if trainer.args.device.type != "cuda":
            saved = SavedTensors(cast(torch.nn.Module, trainer.model))
            with saved:
                run(rows)
            saved.end_pass()
            return saved.most / len(rows)
        # The first pass allocates the gradients, which are counted on their own.
        run(rows)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(rows)
        return (torch.cuda.max_memory_allocated() - before) / len(rows)


def fit(trainer: StepTrainer) -> tuple[int, int, str]:
    """Returns the micro-batch that fits in every process, how many a step, and a line about it.

    Raises:
        UserError: the memory of the device cannot be measured.
        TrainingError: a single row does not fit.
    """
    args, model = trainer.args, cast(torch.nn.Module, trainer.model)
    if args.device.type == "xla":
        raise UserError("per_device_train_batch_size auto cannot measure a TPU; write a number")
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    # Several processes have gradients once more, to exchange them.
    fixed = trained * (COPIES + (args.world_size > 1))
    try:
        row = row_bytes(trainer)
    except torch.OutOfMemoryError:
        row = float("inf")
    row, less = processes.maxima(row, -SHARE * free_bytes(args.device))
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
    chosen = choose(fixed, row, -less, rows)
    need = f"a row needs up to {row / 1e6:,.1f} MB, gradients and optimizer {fixed / 1e6:,.1f} MB"
    room = f"{-less / 1e6:,.1f} MB may be used"
    if chosen is None:
        raise TrainingError(
            f"per_device_train_batch_size auto: a single row does not fit: {need}; {room}; lower "
            "max_length or image_size, or train an adapter"
        )
    size, count = chosen
    return size, count, f"micro-batches of {size} rows, {count} a step: {need}; {room}"

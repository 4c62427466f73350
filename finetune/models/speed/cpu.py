"""What makes training on a CPU cheaper and leaves its result: memory, matrix products."""

import ctypes
import platform
from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

# By glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def prepare(model: nn.Module) -> None:
    """Let a model train by the cheaper ways below; what it saves stays what it was."""
    keep_memory()
    for module in model.modules():
        if type(module) is PeftLinear:
            module.__class__ = LoraLinear


def keep_memory() -> None:
    """Let this process keep the memory that a step frees: the next step wants as much.

    glibc gives large blocks back to the system, which hands them out anew page by page, each
    cleared first; that took about a tenth of a step. Other allocators are left alone.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def flat(x: torch.Tensor) -> torch.Tensor:
    """(*, n) -> (T, n)."""
    return x.reshape(-1, x.shape[-1])


def fp32_on_cpu(*tensors: Any) -> bool:
    """Whether all are fp32 and on a CPU, and their products are to stay so."""
    plain = all(x.dtype is torch.float32 and x.device.type == "cpu" for x in tensors)
    return plain and not torch.is_autocast_enabled("cpu")


class MergedProduct(torch.autograd.Function):
    """x (T, in) -> x @ (weight + scale * b @ a).T + bias (T, out), learned in a and b.

    a (r, in) and b (out, r) are added to the weight (out, in) first: with more tokens than
    columns that is cheaper than to send every token through them.
    """

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, a: Any, b: Any, scale: float) -> Any:
        merged = torch.addmm(weight, b, a, alpha=scale)
        # Computed here, while x is in the processor's cache, for the backward pass.
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
    """peft's LoRA on a linear layer; in its plain form, in fp32, as one product."""

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
            and fp32_on_cpu(x, base.weight, self.lora_A[name].weight)
        )
        if not plain:
            return super().forward(x, *args, **kwargs)
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        scale = self.scaling[name]
        out = MergedProduct.apply(flat(x), base.weight, base.bias, a, b, scale)
        return out.view(*x.shape[:-1], base.out_features)

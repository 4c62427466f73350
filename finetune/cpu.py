"""What makes a training on a CPU cheaper and leaves its result: memory, dropout and LoRA."""

import ctypes
import platform
from typing import Any

import numpy
import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import nn
from torch.nn import functional

# By glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def prepare(model: nn.Module) -> None:
    """Let a model train by the cheaper ways below; what it saves stays what it was."""
    keep_memory()
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = Dropout
        elif type(module) is PeftLinear:
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


class Dropout(nn.Dropout):
    """``nn.Dropout`` that draws 16 bits a value, from a generator that torch's seeds.

    torch draws values one after the other, five times as slowly. A value is dropped with the
    multiple of 2**-16 that is nearest to ``p``, and the others are scaled by just that.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        dropped = round(self.p * 2**16)
        plain = input.dtype is torch.float32 and input.device.type == "cpu" and not self.inplace
        if not plain or not self.training or not 0 < dropped < 2**16:
            return super().forward(input)
        draws = numpy.random.SFC64(int(torch.randint(2**63 - 1, ())))
        bits = draws.random_raw(-(-input.numel() // 4)).view(numpy.uint16)[: input.numel()]
        kept = torch.from_numpy(bits >= dropped).view(input.shape)
        return input * kept.to(input.dtype).mul_(2**16 / (2**16 - dropped))


class MergedProduct(torch.autograd.Function):
    """x (*, in) -> x @ (weight + scale * b @ a).T + bias (*, out), learned in a and b.

    a (r, in) and b (out, r) are added to the weight (out, in) first: with more tokens than
    columns that is cheaper than to send every token through them.
    """

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, a: Any, b: Any, scale: float) -> Any:
        ctx.save_for_backward(x, weight, a, b)
        ctx.scale = scale
        return functional.linear(x, torch.addmm(weight, b, a, alpha=scale), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (of_out,), (x, weight, a, b) = grads, ctx.saved_tensors
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = of_out @ torch.addmm(weight, b, a, alpha=ctx.scale)
        rows, x = of_out.flatten(0, -2), x.flatten(0, -2)
        # With the short side first: the other way round takes up to four times as long.
        of_a = ctx.scale * (b.T @ rows.T) @ x
        of_b = ctx.scale * ((a @ x.T) @ rows).T
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
            and x.device.type == "cpu"
            and x.dtype is base.weight.dtype is self.lora_A[name].weight.dtype is torch.float32
            and not torch.is_autocast_enabled("cpu")
        )
        if not plain:
            return super().forward(x, *args, **kwargs)
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        return MergedProduct.apply(x, base.weight, base.bias, a, b, self.scaling[name])

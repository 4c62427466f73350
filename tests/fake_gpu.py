"""Fakes of what only a GPU has: its memory, and the kernels of flash attention.

- ``memory`` is a device on whose tensors torch computes as ever. An operation on a tensor there and
  one in the CPU's memory fails, as on a GPU. It goes by the name of torch's meta device, the only
  one besides the CPU that a build for CPUs accepts.
- ``Kernel`` is a kernel of flash attention that computes by a plain softmax, takes 16-bit values
  only, and records its calls.
"""

import math
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.nn.attention import varlen
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import modeling_flash_attention_utils as flash_utils

from finetune.models.speed import padding_free

DEVICE = torch.device("meta")


class OnGpu(torch.Tensor):
    """A tensor in the fake memory, around the same one in the CPU's memory."""

    inner: torch.Tensor  # pyright: ignore[reportIncompatibleMethodOverride]

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "OnGpu":
        made = torch.Tensor._make_wrapper_subclass(
            *(cls, inner.size(), inner.stride(), inner.storage_offset()),
            **{"dtype": inner.dtype, "device": DEVICE},
        )
        made.inner = inner
        return made

    def __init__(self, inner: torch.Tensor) -> None: ...

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class Memory(TorchDispatchMode):
    """Lets tensors be made in the fake memory, and moved there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Runs an operation on the CPU, if all its tensors are in one memory or are scalars."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    inside = {id(x.inner): x for x in tensors if isinstance(x, OnGpu)}
    outside = [x for x in tensors if not isinstance(x, OnGpu) and x.ndim]
    target = kwargs.get("device")
    to_gpu, to_cpu = (
        target is not None and torch.device(target).type == t for t in (DEVICE.type, "cpu")
    )
    if inside and outside and "copy" not in str(func):
        raise RuntimeError(f"{func}: expected all tensors to be on the same device")
    args, kwargs = tree_map(lambda x: x.inner if isinstance(x, OnGpu) else x, (args, kwargs))
    out = func(*args, **kwargs | ({"device": torch.device("cpu")} if to_gpu else {}))
    if to_cpu or not (inside or to_gpu):
        return out

    # An operation in place returns what it was given.
    def placed(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        return inside[id(x)] if id(x) in inside else OnGpu(x)

    return tree_map(placed, out)


@contextmanager
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """A machine whose only accelerator is not from NVIDIA."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_, **options: DEVICE)
    # Modules that are moved get new parameters: old ones cannot become of another class.
    monkeypatch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
    with Memory():
        yield DEVICE


class Kernel:
    """Flash attention's varlen function, by a plain softmax in fp32 for each sequence.

    Attributes:
        calls: of each call the type, the lengths of queries and keys, the window and the dropout.
        leaks: whether it ignores where sequences end.
        backward: what gradients are multiplied by.
    """

    def __init__(self, leaks: bool = False, backward: float = 1.0) -> None:
        self.calls: list[dict[str, Any]] = []
        self.leaks, self.backward = leaks, backward

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        starts_q: torch.Tensor,
        starts_k: torch.Tensor,
        scale: float | None,
        window: tuple[int, int],
        dropout: float = 0.0,
    ) -> torch.Tensor:
        """(T, heads, d) and cumulative lengths -> (T, heads, d)."""
        if {x.dtype for x in (q, k, v)} - {torch.bfloat16, torch.float16}:
            raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
        assert starts_q.dtype == starts_k.dtype == torch.int32
        lengths = [starts.diff().tolist() for starts in (starts_q, starts_k, starts_k)]
        self.calls.append(
            {"dtype": q.dtype, "lengths": lengths[:2], "window": window, "dropout": dropout}
        )
        if self.leaks:
            lengths = [[sum(each)] for each in lengths]
        parts = [x.float().split(n) for x, n in zip((q, k, v), lengths, strict=True)]
        out = torch.cat([self.attend(*each, scale, window) for each in zip(*parts, strict=True)])  # pyright: ignore[reportCallIssue]
        if self.backward != 1.0 and out.requires_grad:
            out.register_hook(lambda gradient: gradient * self.backward)
        return out.to(q.dtype)

    @staticmethod
    def attend(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float | None,
        window: tuple[int, int],
    ) -> torch.Tensor:
        """One sequence; with fewer queries than keys, the last query is at the last key."""
        if k.shape[1] != q.shape[1]:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * (scale or 1 / math.sqrt(q.shape[-1]))
        ahead = torch.arange(len(k)) - torch.arange(len(q))[:, None] - (len(k) - len(q))
        left, right = window
        if left >= 0:
            scores = scores.masked_fill(ahead < -left, -math.inf)
        if right >= 0:
            scores = scores.masked_fill(ahead > right, -math.inf)
        return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)


def cuda(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (8, 0)) -> None:
    """A machine with one NVIDIA GPU, whose memory is the CPU's."""
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_, **options: cpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)


def torch_kernel(monkeypatch: pytest.MonkeyPatch, kernel: Kernel) -> Kernel:
    """Replaces the kernel of torch's ``varlen_attn``."""

    def varlen_attn(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        starts_q: torch.Tensor,
        starts_k: torch.Tensor,
        longest_q: int,
        longest_k: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        assert enable_gqa or q.shape[1] == k.shape[1]
        for starts, longest in ((starts_q, longest_q), (starts_k, longest_k)):
            assert int(starts.diff().max()) <= longest
        return kernel(q, k, v, starts_q, starts_k, scale, window_size)

    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    return kernel


def flash_attn(monkeypatch: pytest.MonkeyPatch, kernel: Kernel) -> Kernel:
    """Installs a package flash_attn with the kernel."""

    def flash_attn_varlen_func(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        deterministic: bool = False,
    ) -> torch.Tensor:
        window = (window_size[0], 0 if causal else window_size[1])
        return kernel(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, window, dropout_p)

    def flash_attn_func(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **how: Any) -> Any:
        starts = [torch.arange(len(x) + 1, dtype=torch.int32) * x.shape[1] for x in (q, k)]
        flat = (x.flatten(0, 1) for x in (q, k, v))
        out = flash_attn_varlen_func(*flat, *starts, q.shape[1], k.shape[1], **how)  # pyright: ignore[reportCallIssue]
        return out.unflatten(0, q.shape[:2])

    package, padding = types.ModuleType("flash_attn"), types.ModuleType("flash_attn.bert_padding")
    vars(package).update(
        flash_attn_func=flash_attn_func,
        flash_attn_varlen_func=flash_attn_varlen_func,
        flash_attn_with_kvcache=flash_attn_func,
    )
    vars(padding).update(pad_input=flash_utils._pad_input, unpad_input=flash_utils._unpad_input)
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn.bert_padding", padding)
    needs = flash_utils.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2]
    monkeypatch.setitem(needs, "general_availability_check", lambda: True)
    for module in (flash_utils, padding_free):
        monkeypatch.setattr(module, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr(flash_utils, "_loaded_implementation", None)
    return kernel

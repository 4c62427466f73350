"""Padding-free batches: the encoder computes no padding tokens.

The data collator, the head and the Trainer still see padded batches; the hooks of ``unpadding.py``
do the rest. Which function computes the attention depends on the machine:

- on CUDA in bf16 or fp16 torch's ``varlen_attn``, or else flash-attn;
- elsewhere, and where these do not work, SDPA, one sequence after the other (``per_sequence.py``).

Proof at start-up: ``enable`` compares the logits and gradients of three made-up texts with and
without the hooks. If they differ, or the model cannot do it, the hooks are removed and batches stay
padded. A GPU's kernels then have to give the results of ``per_sequence.py``, or the next is tried.
The run's log says what was chosen and why.
"""

import textwrap
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.import_utils import (
    is_flash_attn_2_available,
    is_kernels_available,
    is_torch_xla_available,
)

from finetune.models import devices
from finetune.models.speed.per_sequence import PER_SEQUENCE
from finetune.models.speed.unpadding import PaddingFreeHooks
from finetune.models.speed.varlen import VARLEN

FLASH = "flash_attention_2"
# Attention functions that need a GPU, in the order in which they are tried, by their names in
# transformers' registry. Where none works, it is SDPA, sequence by sequence.
KERNELS = {VARLEN: "varlen_attn", FLASH: "flash-attn"}
SDPA = "SDPA per sequence"


def enable(model: nn.Module, training: Mapping[str, Any]) -> str:
    """Makes a text model compute its batches without padding, if its results stay the same.

    Args:
        model: a transformers model, or peft's around one; it stays on the device of training.
        training: the recipe's ``training`` section: device, precision and compiler.

    Returns:
        The line for the run's log: whether batches are padded, the attention function, and why.
    """
    if is_torch_xla_available():
        return "batches padded: XLA needs fixed shapes"
    if any(training.get(f"torch_compile{key}") for key in ("", "_backend", "_mode")):
        return "batches padded: torch.compile would recompile for every new shape"
    if torch.is_grad_enabled() and devices.is_sharded():
        return "batches padded: FSDP gathers a layer's weights for the layer as a whole"
    # Prediction computes no gradients, and copies no model.
    if torch.is_grad_enabled() and devices.is_replicated(training):
        return "batches padded: one process has several GPUs; start one process for each GPU"
    base = next(m for m in model.modules() if isinstance(m, PreTrainedModel))
    before, was_training = str(base.config._attn_implementation), model.training
    model.eval()
    hooks = None
    try:
        hooks = _unpad(model, base, training)
        attention = _choose_kernel(model, base, training)
    except NotImplementedError as error:
        if hooks:
            hooks.remove()
        base.set_attn_implementation(before)
        return f"batches padded: {error}"
    finally:
        model.train(was_training)
    return f"batches without padding by {attention}"


def _unpad(
    model: nn.Module, base: PreTrainedModel, training: Mapping[str, Any]
) -> PaddingFreeHooks:
    """Installs the hooks and returns them, with attention per sequence by SDPA.

    Checked in fp32 whatever the precision of training is, because only there equal results are
    equal to many digits.

    Raises:
        NotImplementedError: the results are not those of padded batches; there are no hooks then.
    """
    with devices.as_trained(model, {"use_cpu": training.get("use_cpu")}) as tolerance:
        expected = _sample(model, base)
        _set_attention(base, PER_SEQUENCE)
        try:
            return _install(model, base, expected, tolerance, first_only=True)
        except NotImplementedError:
            return _install(model, base, expected, tolerance, first_only=False)


def _install(
    model: nn.Module,
    base: PreTrainedModel,
    expected: list[torch.Tensor],
    tolerance: float,
    first_only: bool,
) -> PaddingFreeHooks:
    """Installs the hooks and returns them, if the sample's results are the expected ones.

    Raises:
        NotImplementedError: they are not, or the model fails with them; the hooks are removed.
    """
    hooks = PaddingFreeHooks(base.base_model, first_only)
    try:
        found = _sample(model, base)
        if not hooks.used:
            raise NotImplementedError("the encoder does not take token ids")
        _check_equal(found, expected, tolerance)
        return hooks
    except NotImplementedError:
        hooks.remove()
        raise


def _set_attention(base: PreTrainedModel, name: str) -> None:
    """Sets the attention function of a name in transformers' registry.

    Raises:
        NotImplementedError: the model does not take it, or it cannot be loaded.
    """
    try:
        base.set_attn_implementation(name)
    except (ImportError, ValueError, OSError, RuntimeError) as error:
        raise NotImplementedError(str(error)) from error
    # Some models keep their own and only log it; of flash attention there are several packages.
    if name not in {base.config._attn_implementation, FLASH}:
        raise NotImplementedError("the model does not take another attention function")


def _choose_kernel(model: nn.Module, base: PreTrainedModel, training: Mapping[str, Any]) -> str:
    """Sets the first attention function that gives the results of attention per sequence.

    Returns:
        Its name, and why those before it were not chosen.
    """
    lacks = devices.without_flash(training) if torch.cuda.is_available() else "needs CUDA"
    if lacks:
        return f"{SDPA}; flash attention {lacks}"
    refused = []
    with devices.as_trained(model, training) as tolerance:
        expected = _sample(model, base)
        for kernel, name in KERNELS.items():
            try:
                _try_kernel(model, base, kernel, expected, tolerance)
                return "; ".join([name, *refused])
            except NotImplementedError as error:
                refused.append(f"not {name}: {textwrap.shorten(str(error), 120)}")
    base.set_attn_implementation(PER_SEQUENCE)
    return "; ".join([SDPA, *refused])


def _try_kernel(
    model: nn.Module,
    base: PreTrainedModel,
    kernel: str,
    expected: list[torch.Tensor],
    tolerance: float,
) -> None:
    """Sets an attention function and checks it on the sample.

    Raises:
        NotImplementedError: it cannot be set, fails, or gives other results.
    """
    if kernel == FLASH and not (is_flash_attn_2_available() or is_kernels_available()):
        raise NotImplementedError("it is not installed")
    _set_attention(base, kernel)
    _check_equal(_sample(model, base), expected, tolerance)
    # Dropout reaches the attention in training only. The random state stays as it was.
    on_cpu = base.device.type == "cpu"
    with torch.random.fork_rng([] if on_cpu else [base.device], device_type=base.device.type):
        model.train()
        try:
            _sample(model, base)
        finally:
            model.eval()


def _check_equal(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float) -> None:
    """Checks two samples' results.

    Raises:
        NotImplementedError: they differ by more than ``tolerance`` of the largest value.
    """
    for name, ours, theirs in zip(("logits", "gradients"), found, expected, strict=False):
        if not (ours - theirs).abs().max() <= tolerance * theirs.abs().max():
            raise NotImplementedError(f"the {name} would change")


def _sample(model: nn.Module, base: PreTrainedModel) -> list[torch.Tensor]:
    """Returns the model's results for three made-up texts, one of them a single token.

    These are the logits (N, K) of texts or of all their T tokens and, where gradients are computed,
    a gradient (T, H) of the token embeddings: it has passed the attention of every layer.

    Raises:
        NotImplementedError: the model fails on them, for whatever reason.
    """
    config: Any = base.config
    if base.main_input_name != "input_ids":
        raise NotImplementedError("the model takes no text")
    padding = config.pad_token_id or 0
    words = [i for i in range(min(config.vocab_size, 512)) if i != padding]
    lengths = torch.tensor([24, 1, 7])
    mask = (torch.arange(24) < lengths[:, None]).long()
    ids = torch.tensor(words).repeat(72)[torch.arange(72) * 5].view(3, 24)
    ids = torch.where(mask.bool(), ids, padding).to(base.device)
    mask = mask.to(base.device)
    embedded: list[torch.Tensor] = []

    def keep(_: Any, given: Any, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    hooks: list[Any] = []
    try:
        if torch.is_grad_enabled():
            hooks.append(base.get_input_embeddings().register_forward_hook(keep))
        out = model(input_ids=ids, attention_mask=mask)
        # Question answering has two logits for each token, under two names.
        parts = [out[name] for name in out if name.endswith("logits")]
        logits = (torch.stack(parts, -1) if len(parts) > 1 else parts[0]).float()
        # A head on every token also gives logits of padding tokens, which nothing reads.
        logits = logits[mask.bool()] if logits.ndim == 3 else logits
        if not embedded:
            return [logits]
        weights = torch.linspace(-1, 1, logits.numel(), device=logits.device).view_as(logits)
        (gradient,) = torch.autograd.grad((logits * weights).sum(), embedded)
        rows = mask.bool() if gradient.shape[:2] == mask.shape else slice(None)
        return [logits.detach(), gradient[rows].flatten(0, -2).float()]
    except Exception as error:
        raise NotImplementedError(" ".join(str(error).split())) from error
    finally:
        for hook in hooks:
            hook.remove()

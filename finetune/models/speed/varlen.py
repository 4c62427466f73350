"""Attention within each sequence by ``torch.nn.attention.varlen``, for transformers' registry.

- torch's own kernel of flash attention: no package to install, with a backward pass. It computes in
  bf16 or fp16 on CUDA, and has no dropout.
- Importing this module registers the function and its mask under ``VARLEN``.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.attention import varlen
from transformers import AttentionInterface, AttentionMaskInterface

from finetune.models.speed import per_sequence

# The name in transformers' registry of attention functions. save_pretrained does not write it.
VARLEN = "varlen"


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Computes attention within each sequence, as an ``AttentionInterface`` function.

    Args and result are those of ``per_sequence.attention``, which also computes batches that are
    not concatenated sequences. ``max_length_q`` and ``max_length_k`` are the longest lengths.

    Raises:
        NotImplementedError: the model passes an argument that is not supported here, or dropout.
    """
    if attention_mask is not None or cu_seq_lens_q is None or cu_seq_lens_k is None:
        return per_sequence.attention(
            *(module, query, key, value, attention_mask, dropout, scaling, is_causal),
            *(sliding_window, cu_seq_lens_q, cu_seq_lens_k),
            **others,
        )
    per_sequence.refuse(others)
    if max_length_q is None or max_length_k is None:
        raise NotImplementedError("needs the longest lengths")
    if dropout:
        raise NotImplementedError("has no attention dropout")
    causal = bool(getattr(module, "is_causal", False)) if is_causal is None else is_causal
    # The kernel counts tokens beside the current one; -1 is all of them.
    reach = -1 if sliding_window is None else sliding_window - 1
    # Rotary positions leave queries and keys in fp32 under autocast.
    kind = query.device.type
    low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
    # (1, heads, T, d) -> (T, heads, d)
    q, k, v = (x[0].transpose(0, 1).to(low) for x in (query, key, value))
    out = varlen.varlen_attn(
        *(q, k, v, cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k),
        scale=scaling,
        window_size=(reach, 0 if causal else reach),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(out, torch.Tensor)
    return out.unsqueeze(0), None


AttentionInterface.register(VARLEN, attention)
AttentionMaskInterface.register(VARLEN, per_sequence.mask)

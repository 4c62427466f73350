"""Attention within each sequence of a batch without padding, for transformers' registry.

- Sequences come concatenated in one row, with their cumulative lengths, as flash attention takes
  them. Adjacent sequences of equal length become one batched call of
  ``torch.nn.functional.scaled_dot_product_attention`` (SDPA).
- Importing this module registers the function and its mask under ``PER_SEQUENCE``.
"""

import itertools
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

# The name in transformers' registry of attention functions. save_pretrained does not write it.
PER_SEQUENCE = "per_sequence"

# Arguments that models pass to their attention and that change nothing here.
WITHOUT_EFFECT = {
    *("max_length_q", "max_length_k", "position_ids", "use_cache"),
    *("cache_position", "deterministic", "num_items_in_batch", "output_hidden_states"),
}


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
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Computes attention within each sequence, as an ``AttentionInterface`` function.

    Args:
        query, key, value: concatenated sequences (1, heads, T, d). ``cu_seq_lens_q`` are the
            cumulative lengths of the queries, ``cu_seq_lens_k`` those of keys and values. Without
            them (B, heads, L, d), where each row is one whole sequence.
        attention_mask: the mask of a batch that ``PaddingFreeHooks`` did not unpad; then this is
            transformers' own SDPA attention.
        sliding_window: tokens attend to tokens less than this many positions away.

    Returns:
        (1, T, heads, d), or (B, L, heads, d).

    Raises:
        NotImplementedError: the model passes an argument that is not supported here.
    """
    if attention_mask is not None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **others
        )
    refuse(others)
    causal = bool(getattr(module, "is_causal", False)) if is_causal is None else is_causal

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        length = q.shape[2]
        window = None
        if sliding_window is not None and sliding_window < length:
            window = window_mask(length, sliding_window, causal, q.device)
        out = functional.scaled_dot_product_attention(
            *(q, k, v, window, dropout, causal and window is None),
            scale=scaling,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        return out.transpose(1, 2)

    if cu_seq_lens_q is None or cu_seq_lens_k is None:
        return attend(query, key, value), None
    # Adjacent sequences of equal length are one call with a batch dimension.
    lengths = zip(cu_seq_lens_q.diff().tolist(), cu_seq_lens_k.diff().tolist(), strict=True)
    runs = [(len(list(same)), *pair) for pair, same in itertools.groupby(lengths)]

    def cut(x: torch.Tensor, side: int) -> list[torch.Tensor]:
        # (1, heads, T, d) -> (T, heads, d), contiguous, so that the backward pass copies nothing.
        parts = x[0].transpose(0, 1).split([run[0] * run[side] for run in runs])
        # (count * length, heads, d) -> (count, heads, length, d)
        shapes = [(run[0], run[side]) for run in runs]
        return [x.unflatten(0, n).transpose(1, 2) for x, n in zip(parts, shapes, strict=True)]

    states = zip(cut(query, 1), cut(key, 2), cut(value, 2), strict=True)
    parts = [attend(q, k, v).flatten(0, 1) for q, k, v in states]
    return torch.cat(parts).unsqueeze(0), None


def refuse(others: dict[str, Any]) -> None:
    """Checks arguments of an attention function that it does not know.

    Raises:
        NotImplementedError: one of them would change the attention.
    """
    for name, given in others.items():
        if given is not None and given is not False and name not in WITHOUT_EFFECT:
            raise NotImplementedError(f"the attention takes {name}, which is not supported")


@lru_cache(maxsize=256)
def window_mask(length: int, reach: int, causal: bool, device: torch.device) -> torch.Tensor:
    """Returns the mask (length, length) of a sliding window, causal or bidirectional.

    True where query and key are less than ``reach`` positions apart.
    """
    position = torch.arange(length, device=device)
    distance = position[:, None] - position
    return (distance < reach) & (distance >= 0) if causal else distance.abs() < reach


def mask(*arguments: Any, attention_mask: torch.Tensor | None = None, **options: Any) -> Any:
    """Returns None for batches without a padding mask, else SDPA's mask."""
    if attention_mask is None:
        return None
    return sdpa_mask(*arguments, attention_mask=attention_mask, **options)


AttentionInterface.register(PER_SEQUENCE, attention)
AttentionMaskInterface.register(PER_SEQUENCE, mask)

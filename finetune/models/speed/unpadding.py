"""Forward hooks that unpad an encoder's inputs and pad its output again.

- Unpad: before the encoder, the real tokens of a padded batch (B, L) are concatenated into one row
  (1, T). Position ids are set as for the padded batch.
- Cumulative sequence lengths (``cu_seq_lens_q`` and ``cu_seq_lens_k``, as flash attention takes
  them) tell the attention where each sequence ends.
- Pad back: the encoder's output (1, T, H) returns to (B, L, H), with zeros for padding tokens.
- First token only: if the head reads only each sequence's first token and the encoder is shaped
  like BERT, the last layer computes queries for the first token only, and its feed-forward part
  sees no other token. Without it a step of full fine-tuning of MiniLM took 1.15 times the CPU time
  (quartiles 1.13 to 1.19) and 1.16 times the wall time, a step of LoRA 1.15 times: 24 pairs,
  ``OMP_NUM_THREADS=1 python benchmarks/parts.py --steps 24``, 2026-11-25, Intel Xeon.
"""

import inspect
import re
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# The attention module of a BERT-like layer; it has the children ``self`` and ``output``.
ATTENTION = re.compile(r"encoder\.layer\.\d+\.attention")


class PaddingFreeHooks:
    """Forward hooks that unpad an encoder's inputs and pad its output again.

    Args:
        encoder: a model's ``base_model``.
        first_only: the head reads only each sequence's first token. In BERT-like encoders the last
            layer then computes queries for the first token only, and the output is (B, 1, H).
    """

    def __init__(self, encoder: nn.Module, first_only: bool) -> None:
        self.names = list(inspect.signature(encoder.forward).parameters)
        # ``starts`` (B): each sequence's first token among the T real ones. ``token_index`` (T):
        # the real tokens' positions in the flattened padded batch, or None if the current batch
        # stays padded. Kept until the next batch: gradient checkpointing runs the layers again in
        # the backward pass.
        self.starts = torch.empty(0)
        self.token_index: torch.Tensor | None = None
        self.shape = torch.Size()
        self.used = False
        self.hooks = [
            encoder.register_forward_pre_hook(self._unpad, with_kwargs=True),
            encoder.register_forward_hook(self._pad_output),
        ]
        pooler = getattr(encoder, "pooler", None)
        if pooler is not None:
            self.hooks.append(pooler.register_forward_pre_hook(self._pad_pooler_input))
        layers: list[Any] = [m for name, m in encoder.named_modules() if ATTENTION.fullmatch(name)]
        self.first_only = first_only and bool(layers) and hasattr(layers[-1], "self")
        if self.first_only:
            self.last = layers[-1].self
            self.last.forward = self._attend_first_tokens
            self.hooks.append(
                layers[-1].output.register_forward_pre_hook(self._select_first_tokens)
            )

    def _unpad(
        self, encoder: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Replaces every input (B, L) by its real tokens (1, T), and the mask by their lengths."""
        given = dict(zip(self.names, arguments, strict=False)) | options
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        self.token_index = None
        if ids is None or mask is None or mask.shape != ids.shape:
            return None
        # Named ``cache`` from transformers 5.24 on.
        if given.get("past_key_values") or given.get("cache"):
            return None
        self.used = True
        index, self.shape = mask.flatten().nonzero().squeeze(1), ids.shape
        given.setdefault("position_ids", None)
        if given["position_ids"] is None:
            given["position_ids"] = _position_ids(encoder, ids)
        given = {
            name: value.flatten()[index][None]
            if isinstance(value, torch.Tensor) and value.shape == ids.shape
            else value
            for name, value in given.items()
        }
        ends = functional.pad(mask.sum(1).cumsum(0), (1, 0)).to(torch.int32)
        self.starts, self.token_index = ends[:-1], index
        return (), given | {
            "attention_mask": None,
            **{"cu_seq_lens_q": ends, "cu_seq_lens_k": ends},
            **{"max_length_q": ids.shape[1], "max_length_k": ids.shape[1]},
        }

    def _attend_first_tokens(
        self, states: torch.Tensor, *rest: Any, **options: Any
    ) -> tuple[Any, Any]:
        """The last layer's attention: states (1, T, H) -> those of the first tokens (1, B, H)."""
        last = self.last
        if self.token_index is None:
            return type(last).forward(last, states, *rest, **options)
        heads = (1, -1, last.num_attention_heads, last.attention_head_size)
        rows = ((last.query, states[:, self.starts]), (last.key, states), (last.value, states))
        ends = torch.arange(len(self.starts) + 1, dtype=torch.int32, device=states.device)
        given = options | {"cu_seq_lens_q": ends, "max_length_q": 1}
        given |= {"dropout": last.dropout.p * last.training, "scaling": last.scaling}
        attend = ALL_ATTENTION_FUNCTIONS[last.config._attn_implementation]
        out, _ = attend(last, *(f(x).view(heads).transpose(1, 2) for f, x in rows), **given)
        return out.flatten(2), None

    def _select_first_tokens(
        self, output: nn.Module, arguments: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...] | None:
        """Cuts the residual input (1, T, H) of the last attention to the first tokens (1, B, H)."""
        if self.token_index is None:
            return None
        return arguments[0], arguments[1][:, self.starts]

    def _pad(self, states: torch.Tensor) -> torch.Tensor:
        """States (1, T, H) -> (B, L, H), zero for padding; first tokens (1, B, H) -> (B, 1, H)."""
        assert self.token_index is not None
        # Layers before the last have all tokens.
        if self.first_only and states.shape[1] == len(self.starts):
            return states.transpose(0, 1)
        rows = states.new_zeros(self.shape.numel(), states.shape[-1])
        return rows.index_copy(0, self.token_index, states[0]).view(*self.shape, -1)

    def _pad_pooler_input(
        self, pooler: nn.Module, arguments: tuple[Any, ...]
    ) -> tuple[Any, ...] | None:
        if self.token_index is None:
            return None
        if arguments[0].ndim != 3:
            raise NotImplementedError("the pooler does not take all states (B, L, H)")
        return (self._pad(arguments[0]), *arguments[1:])

    def _pad_output(self, encoder: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        if self.token_index is not None:
            output.last_hidden_state = self._pad(output.last_hidden_state)
            if output.hidden_states is not None:
                output.hidden_states = tuple(map(self._pad, output.hidden_states))

    def remove(self) -> None:
        """Removes the hooks; the encoder computes padded batches again."""
        for hook in self.hooks:
            hook.remove()
        if self.first_only:
            del self.last.forward


def _position_ids(encoder: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Returns the position ids (B, L) that the encoder would give to token ids (B, L)."""
    embeddings = getattr(encoder, "embeddings", None)
    create = getattr(embeddings, "create_position_ids_from_input_ids", None)
    if create is not None:
        # RoBERTa's positions start after that of its padding token.
        return create(ids, embeddings.padding_idx)  # pyright: ignore
    return torch.arange(ids.shape[1], device=ids.device).expand_as(ids)

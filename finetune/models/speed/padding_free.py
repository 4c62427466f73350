"""Batches without padding: the trunk sees a batch's real tokens only, laid end to end.

A batch comes padded, as the Trainer and every head know it. At the trunk's door its real tokens
become one row, inside each sequence attends to itself alone, and at the exit the states return to
their padded places: what stands outside of the trunk computes what it always did.
"""

import inspect
import itertools
import re
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.import_utils import is_flash_attn_2_available, is_torch_xla_available

# A layer's attention, by the names of BERT and its kin: ``self``, and ``output`` behind it.
ATTENTION = re.compile(r"encoder\.layer\.\d+\.attention")
# The name in transformers' registry. It is no part of what a model's config saves.
PER_SEQUENCE = "per_sequence"
FLASH = "flash_attention_2"

# What models hand to their attention that changes nothing here; anything else might.
WITHOUT_EFFECT = {
    *("max_length_q", "max_length_k", "position_ids", "use_cache"),
    *("cache_position", "deterministic", "num_items_in_batch"),
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
    """Attention inside each sequence, as an ``AttentionInterface`` function.

    Args:
        query, key, value: (1, heads, T, d): sequences end to end, as ``cu_seq_lens_q`` cuts the
            queries, and ``cu_seq_lens_k`` keys and values; without them (B, heads, L, d): rows
            that are whole sequences.
        attention_mask: of a batch that did not come through ``Doors``; plain attention then.
        sliding_window: tokens attend to those less than so many places away.

    Returns:
        (1, T, heads, d), or (B, L, heads, d).

    Raises:
        NotImplementedError: the model asks its attention for something that is not done here.
    """
    if attention_mask is not None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **others
        )
    for name, given in others.items():
        if given is not None and given is not False and name not in WITHOUT_EFFECT:
            raise NotImplementedError(f"its attention takes {name}")
    causal = bool(getattr(module, "is_causal", False)) if is_causal is None else is_causal

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        length = q.shape[2]
        near = None
        if sliding_window is not None and sliding_window < length:
            near = window(length, sliding_window, causal, q.device)
        out = functional.scaled_dot_product_attention(
            *(q, k, v, near, dropout, causal and near is None),
            scale=scaling,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        return out.transpose(1, 2)

    if cu_seq_lens_q is None or cu_seq_lens_k is None:
        return attend(query, key, value), None
    # Neighbours of one length go together: fewer calls, and wider ones.
    lengths = zip(cu_seq_lens_q.diff().tolist(), cu_seq_lens_k.diff().tolist(), strict=True)
    runs = [(len(list(same)), *pair) for pair, same in itertools.groupby(lengths)]

    def cut(x: torch.Tensor, side: int) -> list[torch.Tensor]:
        # (1, heads, T, d) -> (T, heads, d), as it lies in memory: gradients come together uncopied.
        parts = x[0].transpose(0, 1).split([run[0] * run[side] for run in runs])
        # (count * length, heads, d) -> (count, heads, length, d)
        shapes = [(run[0], run[side]) for run in runs]
        return [x.unflatten(0, n).transpose(1, 2) for x, n in zip(parts, shapes, strict=True)]

    states = zip(cut(query, 1), cut(key, 2), cut(value, 2), strict=True)
    parts = [attend(q, k, v).flatten(0, 1) for q, k, v in states]
    return torch.cat(parts).unsqueeze(0), None


@lru_cache(maxsize=256)
def window(length: int, reach: int, causal: bool, device: torch.device) -> torch.Tensor:
    """Mask (length, length) of the pairs less than ``reach`` places apart, causal or both ways."""
    place = torch.arange(length, device=device)
    apart = place[:, None] - place
    return (apart < reach) & (apart >= 0) if causal else apart.abs() < reach


def _mask(*arguments: Any, attention_mask: torch.Tensor | None = None, **options: Any) -> Any:
    """No mask for rows that hold no padding; else the usual one."""
    if attention_mask is None:
        return None
    return sdpa_mask(*arguments, attention_mask=attention_mask, **options)


AttentionInterface.register(PER_SEQUENCE, attention)
AttentionMaskInterface.register(PER_SEQUENCE, _mask)


class Doors:
    """The hooks that take padding out of a trunk's inputs and put it back into its states.

    Args:
        trunk: a model's ``base_model``.
        first_only: the head reads each sequence's first token alone. Where the trunk has BERT's
            shape, no other then asks in the last layer, goes beyond its attention, or comes out.
    """

    def __init__(self, trunk: nn.Module, first_only: bool) -> None:
        self.names = list(inspect.signature(trunk.forward).parameters)
        # Where each sequence starts among the real tokens, and where those stand in the padded
        # batch; None for a batch that is not for us. They stay until the next batch: gradient
        # checkpointing runs the layers once more in the backward pass.
        self.starts = torch.empty(0)
        self.kept: torch.Tensor | None = None
        self.shape = torch.Size()
        self.used = False
        self.hooks = [
            trunk.register_forward_pre_hook(self._enter, with_kwargs=True),
            trunk.register_forward_hook(self._leave),
        ]
        pooler = getattr(trunk, "pooler", None)
        if pooler is not None:
            self.hooks.append(pooler.register_forward_pre_hook(self._pool))
        layers: list[Any] = [m for name, m in trunk.named_modules() if ATTENTION.fullmatch(name)]
        self.first_only = first_only and bool(layers) and hasattr(layers[-1], "self")
        if self.first_only:
            self.last = layers[-1].self
            self.last.forward = self._first_attend
            self.hooks.append(layers[-1].output.register_forward_pre_hook(self._stop_others))

    def _enter(
        self, trunk: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        given = dict(zip(self.names, arguments, strict=False)) | options
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        self.kept = None
        if ids is None or mask is None or mask.shape != ids.shape:
            return None
        # Named ``cache`` from transformers 5.24 on.
        if given.get("past_key_values") or given.get("cache"):
            return None
        self.used = True
        index, self.shape = mask.flatten().nonzero().squeeze(1), ids.shape
        given.setdefault("position_ids", None)
        if given["position_ids"] is None:
            given["position_ids"] = _positions(trunk, ids)
        given = {
            name: value.flatten()[index][None]
            if isinstance(value, torch.Tensor) and value.shape == ids.shape
            else value
            for name, value in given.items()
        }
        ends = functional.pad(mask.sum(1).cumsum(0), (1, 0)).to(torch.int32)
        self.starts, self.kept = ends[:-1], index
        return (), given | {
            "attention_mask": None,
            **{"cu_seq_lens_q": ends, "cu_seq_lens_k": ends},
            **{"max_length_q": ids.shape[1], "max_length_k": ids.shape[1]},
        }

    def _first_attend(self, states: torch.Tensor, *rest: Any, **options: Any) -> tuple[Any, Any]:
        """What the last attention gives of states (1, T, H): of the first tokens (1, B, H)."""
        last = self.last
        if self.kept is None:
            return type(last).forward(last, states, *rest, **options)
        heads = (1, -1, last.num_attention_heads, last.attention_head_size)
        rows = ((last.query, states[:, self.starts]), (last.key, states), (last.value, states))
        ends = torch.arange(len(self.starts) + 1, dtype=torch.int32, device=states.device)
        given = options | {"cu_seq_lens_q": ends, "max_length_q": 1}
        given |= {"dropout": last.dropout.p * last.training, "scaling": last.scaling}
        attend = ALL_ATTENTION_FUNCTIONS[last.config._attn_implementation]
        out, _ = attend(last, *(f(x).view(heads).transpose(1, 2) for f, x in rows), **given)
        return out.flatten(2), None

    def _stop_others(
        self, output: nn.Module, arguments: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...] | None:
        """Of the last attention's input (1, T, H) the first tokens (1, B, H), as it gave."""
        if self.kept is None:
            return None
        return arguments[0], arguments[1][:, self.starts]

    def _padded(self, states: torch.Tensor) -> torch.Tensor:
        """States (1, T, H) -> (B, L, H), zero for padding; first tokens (1, B, H) -> (B, 1, H)."""
        assert self.kept is not None
        if self.first_only:
            return states.transpose(0, 1)
        rows = states.new_zeros(self.shape.numel(), states.shape[-1])
        return rows.index_copy(0, self.kept, states[0]).view(*self.shape, -1)

    def _pool(self, pooler: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.kept is None:
            return None
        if arguments[0].ndim != 3:
            raise NotImplementedError("its pooler takes states that were picked before")
        return (self._padded(arguments[0]), *arguments[1:])

    def _leave(self, trunk: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        if self.kept is not None:
            output.last_hidden_state = self._padded(output.last_hidden_state)

    def remove(self) -> None:
        """Leave the trunk as it was."""
        for hook in self.hooks:
            hook.remove()
        if self.first_only:
            del self.last.forward


def _positions(trunk: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """The positions (B, L) that the trunk would number ids (B, L) with."""
    embeddings = getattr(trunk, "embeddings", None)
    number = getattr(embeddings, "create_position_ids_from_input_ids", None)
    if number is not None:
        # RoBERTa starts behind its padding token's position.
        return number(ids, embeddings.padding_idx)  # pyright: ignore
    return torch.arange(ids.shape[1], device=ids.device).expand_as(ids)


def enable(model: nn.Module, training: dict[str, Any]) -> str:
    """Take the padding out of a classifier's batches of texts, if its logits stay what they are.

    Args:
        model: a transformers model, or peft's around one.
        training: the recipe's, for the device, precision and compiler it asks for.

    Returns:
        Nothing, or why batches stay padded.
    """
    kernel = PER_SEQUENCE
    if is_torch_xla_available():
        return "XLA wants fixed shapes"
    if any(training.get(f"torch_compile{key}") for key in ("", "_backend", "_mode")):
        return "torch.compile cannot follow shapes that change on the way"
    if torch.accelerator.is_available() and not training.get("use_cpu"):
        low = training.get("bf16") or training.get("fp16")
        if not (torch.cuda.is_available() and is_flash_attn_2_available() and low):
            return "without padding a GPU needs flash-attn, and bf16 or fp16"
        kernel = FLASH
    base = next(m for m in model.modules() if isinstance(m, PreTrainedModel))
    before, was_training = str(base.config._attn_implementation), model.training
    model.eval()
    try:
        expected = _sample(model, base)
        base.set_attn_implementation(PER_SEQUENCE)
        if base.config._attn_implementation != PER_SEQUENCE:
            raise NotImplementedError("its attention is its own")
        try:
            _prove(model, base, expected, first_only=True)
        except NotImplementedError:
            _prove(model, base, expected, first_only=False)
        why = ""
    except NotImplementedError as error:
        why = str(error)
    model.train(was_training)
    if why:
        base.set_attn_implementation(before)
    elif kernel != PER_SEQUENCE:
        base.set_attn_implementation(kernel)
    return why


def _prove(
    model: nn.Module, base: PreTrainedModel, expected: torch.Tensor, first_only: bool
) -> None:
    """Put doors on the trunk, to stay if its logits are the expected ones.

    Raises:
        NotImplementedError: they are not, or there are none.
    """
    doors = Doors(base.base_model, first_only)
    try:
        found = _sample(model, base)
        if not doors.used:
            raise NotImplementedError("its tokens do not enter as ids")
        if (found - expected).abs().max() > 1e-4 * expected.abs().max():
            raise NotImplementedError("its logits would change")
    except NotImplementedError:
        doors.remove()
        raise


@torch.no_grad()
def _sample(model: nn.Module, base: PreTrainedModel) -> torch.Tensor:
    """Logits (N, K) of three made-up texts, one a single token, or of all their tokens.

    Raises:
        NotImplementedError: the model does not answer, whatever it is that stops it.
    """
    config: Any = base.config
    if base.main_input_name != "input_ids":
        raise NotImplementedError("it reads no text")
    padding = config.pad_token_id or 0
    words = [i for i in range(min(config.vocab_size, 512)) if i != padding]
    lengths = torch.tensor([24, 1, 7])
    mask = (torch.arange(24) < lengths[:, None]).long()
    ids = torch.tensor(words).repeat(72)[torch.arange(72) * 5].view(3, 24)
    ids = torch.where(mask.bool(), ids, padding).to(base.device)
    mask = mask.to(base.device)
    try:
        logits = model(input_ids=ids, attention_mask=mask).logits.float()
        # A head on every token speaks of padding too, which nobody asks.
        return logits[mask.bool()] if logits.ndim == 3 else logits
    except Exception as error:
        raise NotImplementedError(" ".join(str(error).split())) from error

"""Cached features: a frozen encoder's last hidden states, computed once and stored on disk.

With ``method: head`` the encoder never changes, so training needs it only once per row:

- ``replace`` runs the encoder, in evaluation mode, over every split and keeps each row's last
  hidden state of the first token (H).
- The states go to the cache folder under a hash of everything that determines them: encoder
  weights, config, precision, library versions and the encoded rows.
- The splits then hold ``inputs_embeds`` instead of token ids, and the encoder's ``forward`` passes
  such states through to the head.
- Proof at start-up: the logits of three rows have to be the same with and without the cache. A
  head that reads more than the first token fails it, and the splits stay as they were.
"""

import hashlib
import types
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy
import torch
from accelerate import PartialState
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from finetune.data import tensor_cache
from finetune.data.batching import within

# Tokens of one forward pass of the encoder: 32 rows of 256.
BUDGET = 8192
LABELS = {"labels", "length", "truncated"}


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Collates rows of cached features into ``inputs_embeds`` (B, 1, H) and ``labels`` (B)."""
    states = numpy.asarray([row["inputs_embeds"] for row in rows], dtype=numpy.float32)
    return {
        "inputs_embeds": torch.from_numpy(states)[:, None],
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


def replace(
    model: PreTrainedModel,
    splits: dict[str, Dataset],
    collator: Callable[..., dict[str, torch.Tensor]],
    training: dict[str, Any],
) -> str:
    """Replaces the splits' inputs by cached features, if the head reads only the first token.

    The encoder's dropout is off while it computes them. From then on ``model`` takes cached
    features as ``inputs_embeds`` (B, 1, H), and token ids as before.

    Args:
        splits: encoded rows by the split's name; changed in place, for ``collate``.
        collator: the task's data collator for encoded rows.
        training: the recipe's ``training`` section, for its device and precision.

    Returns:
        An empty string, or the reason why the splits stay as they were.
    """
    device = torch.device("cpu" if training.get("use_cpu") else str(PartialState().device))
    model.to(device)  # pyright: ignore[reportArgumentType]
    encoder: Any = model.base_model
    low = torch.bfloat16 if training.get("bf16") else torch.float16
    half = bool(training.get("bf16") or training.get("fp16"))
    was_training = model.training
    model.eval()
    with torch.inference_mode(), torch.autocast(device.type, low, half):
        digest = _digest(encoder, half and str(low))
        found = {
            name: _states(encoder, rows, collator, digest.copy()) for name, rows in splits.items()
        }
        some = [splits["train"][i] for i in range(min(3, len(splits["train"])))]
        inputs = {k: v.to(device) for k, v in collator(some).items() if k not in LABELS}
        expected = model(**inputs).logits.float()
        encoder.forward = types.MethodType(_from_states, encoder)
        first = found["train"][: len(some), None].to(device)
        logits = model(inputs_embeds=first).logits.float()
    model.train(was_training)
    if (logits - expected).abs().max() > (2e-2 if half else 1e-4) * expected.abs().max():
        del encoder.forward
        return "the head reads more than the first token's state"
    for name, rows in splits.items():
        kept = {column: rows[column] for column in rows.column_names if column in LABELS}
        splits[name] = Dataset.from_dict({"inputs_embeds": found[name].numpy(), **kept})
    return ""


def _from_states(encoder: Any, *arguments: Any, inputs_embeds: Any = None, **options: Any) -> Any:
    """The encoder's ``forward``, which passes ``inputs_embeds`` through as its last states."""
    if inputs_embeds is None:
        return type(encoder).forward(encoder, *arguments, **options)
    pooler = getattr(encoder, "pooler", None)
    return BaseModelOutputWithPooling(
        last_hidden_state=inputs_embeds,
        pooler_output=None if pooler is None else pooler(inputs_embeds),
    )


def _digest(encoder: PreTrainedModel, precision: str | bool) -> Any:
    """Starts a hash of everything that turns tokens into states.

    The pooler is left out, because it is trained with the head.
    """
    digest = hashlib.sha256()
    settings = [
        version("torch"),
        version("transformers"),
        precision,
        encoder.config.to_json_string(),
    ]
    digest.update(repr(settings).encode())
    for name, tensor in encoder.state_dict().items():
        if not name.startswith("pooler."):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest


def _states(
    encoder: PreTrainedModel,
    rows: Dataset,
    collator: Callable[..., dict[str, torch.Tensor]],
    digest: Any,
) -> torch.Tensor:
    """Returns the first token's last hidden state of each row (N, H) float32, cached.

    Args:
        digest: the encoder's hash; the rows' inputs are added to it here.
    """
    inputs = [name for name in rows.column_names if name not in LABELS]
    for name in inputs:
        digest.update(name.encode())
        for chunk in rows.data.column(name).chunks:
            for buffer in chunk.buffers():
                digest.update(buffer or b"")
    return tensor_cache.once(
        "features", digest.hexdigest(), lambda: _computed(encoder, rows, collator, inputs)
    )


def _computed(
    encoder: PreTrainedModel,
    rows: Dataset,
    collator: Callable[..., dict[str, torch.Tensor]],
    inputs: list[str],
) -> torch.Tensor:
    """Runs the encoder over all rows, and returns what ``_states`` returns.

    Args:
        inputs: the columns that the encoder reads.
    """
    device = next(encoder.parameters()).device
    states = torch.empty(len(rows), 0)
    with tqdm(total=len(rows), unit="row", ncols=80, desc="features") as bar:
        for chosen in within(rows["length"], BUDGET):
            columns = rows[chosen]
            batch = collator(
                [{name: columns[name][i] for name in inputs} for i in range(len(chosen))]
            )
            inputs_of_batch = {name: value.to(device) for name, value in batch.items()}
            first = encoder(**inputs_of_batch).last_hidden_state[:, 0].float().cpu()
            if not states.numel():
                states = torch.empty(len(rows), first.shape[1])
            states[torch.from_numpy(chosen)] = first
            bar.update(len(chosen))
    return states

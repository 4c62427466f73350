"""What a frozen trunk tells its head, computed once and kept on disk."""

import hashlib
import os
import types
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy
import torch
from accelerate import PartialState
from datasets import Dataset
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from finetune.data import sources
from finetune.data.batching import within

# Tokens of one pass through the trunk: 32 rows of 256.
BUDGET = 8192
LABELS = {"labels", "length", "truncated"}


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Rows of ``replace``'s splits -> ``inputs_embeds`` (B, 1, H) and ``labels``."""
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
    """Put the trunk's states in place of its inputs, if the head reads no more than the first.

    The trunk is in evaluation mode for it: its dropout does not act. ``model`` takes
    ``inputs_embeds`` (B, 1, H) for such states from then on, and still its own inputs.

    Args:
        splits: encoded rows by the split's name; changed, for ``collate`` to batch.
        collator: the task's, for encoded rows.
        training: the recipe's, for its precision.

    Returns:
        Nothing, or why the splits stay as they were.
    """
    state = PartialState()
    device = torch.device("cpu") if training.get("use_cpu") else torch.device(str(state.device))
    model.to(device)  # pyright: ignore[reportArgumentType]
    trunk: Any = model.base_model
    low = torch.bfloat16 if training.get("bf16") else torch.float16
    half = bool(training.get("bf16") or training.get("fp16"))
    was_training = model.training
    model.eval()
    # The main process fills the cache; the others of its machine find it filled.
    with (
        state.local_main_process_first(),
        torch.inference_mode(),
        torch.autocast(device.type, low, half),
    ):
        whole = _digest(trunk, half and str(low))
        found = {
            name: _states(trunk, rows, collator, whole.copy()) for name, rows in splits.items()
        }
        some = [splits["train"][i] for i in range(min(3, len(splits["train"])))]
        inputs = {k: v.to(device) for k, v in collator(some).items() if k not in LABELS}
        expected = model(**inputs).logits.float()
        trunk.forward = types.MethodType(_from_states, trunk)
        first = found["train"][: len(some), None].to(device)
        said = model(inputs_embeds=first).logits.float()
    model.train(was_training)
    if (said - expected).abs().max() > (2e-2 if half else 1e-4) * expected.abs().max():
        del trunk.forward
        return "its head reads more than each text's first state"
    for name, rows in splits.items():
        kept = {column: rows[column] for column in rows.column_names if column in LABELS}
        splits[name] = Dataset.from_dict({"inputs_embeds": found[name].numpy(), **kept})
    return ""


def _from_states(trunk: Any, *arguments: Any, inputs_embeds: Any = None, **options: Any) -> Any:
    """The trunk's ``forward``, which takes last states for what they are."""
    if inputs_embeds is None:
        return type(trunk).forward(trunk, *arguments, **options)
    pooler = getattr(trunk, "pooler", None)
    return BaseModelOutputWithPooling(
        last_hidden_state=inputs_embeds,
        pooler_output=None if pooler is None else pooler(inputs_embeds),
    )


def _digest(trunk: PreTrainedModel, precision: str | bool) -> Any:
    """A hash of all that turns tokens into states; the pooler is the head's."""
    whole = hashlib.sha256()
    said = [version("torch"), version("transformers"), precision, trunk.config.to_json_string()]
    whole.update(repr(said).encode())
    for name, tensor in trunk.state_dict().items():
        if not name.startswith("pooler."):
            whole.update(name.encode())
            whole.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return whole


def _states(
    trunk: PreTrainedModel,
    rows: Dataset,
    collator: Callable[..., dict[str, torch.Tensor]],
    whole: Any,
) -> torch.Tensor:
    """The first token's last state of each row (N, H) float32, from the cache where it is there.

    Args:
        whole: the trunk's hash, which takes up the rows' inputs.
    """
    inputs = [name for name in rows.column_names if name not in LABELS]
    for name in inputs:
        whole.update(name.encode())
        for chunk in rows.data.column(name).chunks:
            for buffer in chunk.buffers():
                whole.update(buffer or b"")
    file = sources.cache("features") / f"{whole.hexdigest()}.safetensors"
    try:
        return load_file(file)["states"]
    except (FileNotFoundError, SafetensorError):
        pass
    device = next(trunk.parameters()).device
    states = torch.empty(len(rows), 0)
    with tqdm(total=len(rows), unit="row", ncols=80, desc="features") as bar:
        for chosen in within(rows["length"], BUDGET):
            columns = rows[chosen]
            batch = collator(
                [{name: columns[name][i] for name in inputs} for i in range(len(chosen))]
            )
            given = {name: value.to(device) for name, value in batch.items()}
            first = trunk(**given).last_hidden_state[:, 0].float().cpu()
            if not states.numel():
                states = torch.empty(len(rows), first.shape[1])
            states[torch.from_numpy(chosen)] = first
            bar.update(len(chosen))
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}")
    save_file({"states": states}, part)
    part.replace(file)
    return states

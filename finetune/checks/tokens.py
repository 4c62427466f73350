"""What the model's tokenizer makes of the texts, and what an epoch would see of them."""

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy
import pandas
from tokenizers import Tokenizer

from finetune.checks.finding import PARTS, Finding, Severity, example, some
from finetune.data import sources
from finetune.errors import UserError
from finetune.recipe import Recipe
from finetune.recipe.checking import typed

# Above these shares, truncation and unknown tokens are a warning.
MUCH_CUT, MUCH_UNKNOWN = 0.2, 0.01
# Where files of a checkpoint say how many positions there are.
LIMITS = {
    "config.json": ("max_position_embeddings", "n_positions"),
    "tokenizer_config.json": ("model_max_length",),
}
# What transformers.TrainingArguments takes where a recipe says nothing.
DEFAULTS = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 3.0,
    "max_steps": -1,
}


@dataclass
class Tokens:
    """The tokens of N rows: ``lengths`` (N,) with special tokens, ``unknown`` (N,) of them."""

    lengths: numpy.ndarray
    unknown: numpy.ndarray


def tokenizer(checkpoint: sources.Checkpoint) -> Tokenizer:
    """Returns the checkpoint's tokenizer; transformers is imported only to convert another format.

    Raises:
        UserError: there is none, or none that the tokenizers library can run.
    """
    file = checkpoint.folder / "tokenizer.json"
    if file.is_file() and not checkpoint.gguf:
        found = Tokenizer.from_file(str(file))
    else:
        found = of_transformers(checkpoint).backend_tokenizer
    found.no_truncation()
    found.no_padding()
    return found


def of_transformers(checkpoint: sources.Checkpoint) -> Any:
    """Returns the checkpoint's tokenizer with its chat template.

    Raises:
        UserError: as ``tokenizer`` does.
    """
    from finetune.models import tokenizer_files

    try:
        found = tokenizer_files.load(*checkpoint.processor)
    except (OSError, ValueError):
        found = None
    if found is None or not found.is_fast:
        raise UserError(f"{checkpoint.name}: has no fast tokenizer; take a checkpoint that has one")
    return found


def count(frame: pandas.DataFrame, found: Tokenizer) -> Tokens:
    """Counts the tokens of texts, or of pairs of texts."""
    columns = [frame[part].to_list() for part in PARTS if part in frame]
    texts: Any = columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
    encoded = found.encode_batch(texts)
    name = json.loads(found.to_str())["model"].get("unk_token")
    unknown = found.token_to_id(name) if name else None
    return Tokens(
        numpy.array([len(row.ids) for row in encoded]),
        numpy.array([row.ids.count(unknown) if unknown is not None else 0 for row in encoded]),
    )


def room(checkpoint: sources.Checkpoint) -> int | None:
    """Returns how many tokens the model has positions for; None if its files do not say.

    Read from the files, because the config classes need torch; training asks those.
    """
    least = None
    for name, keys in LIMITS.items():
        file = checkpoint.folder / name
        stated = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        for key in keys:
            if isinstance(stated.get(key), int):
                least = min(stated[key], least or stated[key])
    return least


def longer(
    frame: pandas.DataFrame,
    lengths: numpy.ndarray,
    recipe: Recipe,
    most: int | None,
    pieces: bool = False,
) -> list[Finding]:
    """Finds training rows that are longer than ``max_length``.

    Args:
        lengths: (N,) tokens of each row.
        most: how many tokens the model has positions for, if that is known.
        pieces: whether the rest of a row is learned in another one; otherwise it is cut off.
    """
    limit, found = recipe.model.max_length, []
    if most and limit > most:
        what = f"max_length {limit} is more than the {most} positions of {recipe.model.checkpoint}"
        found.append(Finding(Severity.ERROR, what, None, f"Write --max_length {most}, or less."))
    above = lengths > limit
    if not above.any():
        return found
    share = above.mean()
    severity = Severity.WARNING if share > MUCH_CUT and not pieces else Severity.NOTE
    what = f"training rows ({100 * share:.1f} %) are longer than max_length {limit} and "
    if pieces:
        what += "continue in another row"
    else:
        kept = numpy.minimum(lengths, limit).sum() / lengths.sum()
        what += f"cut: {100 * kept:.0f} % of all tokens are kept"
    enough = int(numpy.percentile(lengths, 95))
    if pieces:
        advice = "Nothing to do: a larger --max_length only lets the model look further back."
    elif most and enough > most:
        still = (lengths > most).mean()
        advice = f"--max_length {most}, the most the model has positions for, would cut "
        advice += f"{100 * still:.1f} % of the rows. More tokens take more time."
    elif enough > limit:
        advice = f"--max_length {enough} would keep 95 % of the rows whole. It takes more time."
    else:
        advice = "Few rows are so long; nothing to do, unless their end matters."
    order = numpy.argsort(-lengths, kind="stable")[: above.sum()]
    examples = some(example(frame, i, f"{lengths[i]:,} tokens") for i in order)
    return [*found, Finding(severity, what, int(above.sum()), advice, examples)]


def unknown(frame: pandas.DataFrame, tokens: Tokens) -> list[Finding]:
    """Finds texts that the tokenizer has no tokens for."""
    share = tokens.unknown.sum() / max(tokens.lengths.sum(), 1)
    if not share:
        return []
    severity = Severity.WARNING if share > MUCH_UNKNOWN else Severity.NOTE
    what = f"training texts have unknown tokens, {100 * share:.2g} % of all"
    advice = "Take a checkpoint whose tokenizer knows this script, or clean the texts."
    order = [i for i in numpy.argsort(-tokens.unknown, kind="stable") if tokens.unknown[i]]
    examples = some(
        example(frame, i, f"{tokens.unknown[i]} of {tokens.lengths[i]} unknown") for i in order
    )
    return [Finding(severity, what, len(order), advice, examples)]


def describe(lengths: numpy.ndarray) -> str:
    """Describes the lengths of rows in tokens."""
    if not len(lengths):
        return ""
    middle, high = numpy.percentile(lengths, [50, 95])
    most = f"95 % have at most {high:,.0f}, the longest {lengths.max():,}"
    return f"{middle:,.0f} in a typical row, {most}"


def plan(recipe: Recipe, rows: int, tokens: int | None, unit: str = "rows") -> str:
    """Describes what an epoch sees and how many steps training takes, in one process.

    Args:
        rows: rows, or blocks, of an epoch.
        tokens: those of an epoch; None where there are none.
        unit: what a batch consists of.

    Raises:
        UserError: a training key is no number.
    """
    values = {}
    for name, default in DEFAULTS.items():
        given = recipe.training.get(name, default)
        where = recipe.where(f"training.{name}")
        values[name] = typed(type(default), given, name, where)
    batch = values["per_device_train_batch_size"] * values["gradient_accumulation_steps"]
    if batch < 1:
        raise UserError(f"{recipe.name}: a batch needs at least one row")
    steps = max(math.ceil(rows / batch), 1)
    total = values["max_steps"]
    if total <= 0:
        total = math.ceil(values["num_train_epochs"] * steps)
    seen = f"{rows:,} {unit}" + (f", {tokens:,} tokens" if tokens is not None else "")
    epochs = f"{total / steps:.3g} epoch{'s' if total != steps else ''}"
    return f"{seen}, {steps:,} steps of {batch}; {total:,} steps in {epochs}"

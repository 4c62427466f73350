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
        from transformers import AutoTokenizer

        try:
            loaded = AutoTokenizer.from_pretrained(checkpoint.folder, **checkpoint.options)
        except (OSError, ValueError):
            loaded = None
        if loaded is None or not loaded.is_fast:
            raise UserError(
                f"{checkpoint.name}: has no fast tokenizer; take a checkpoint that has one"
            )
        found = loaded.backend_tokenizer
    found.no_truncation()
    found.no_padding()
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


def truncated(frame: pandas.DataFrame, tokens: Tokens, recipe: Recipe) -> list[Finding]:
    """Finds training texts that are longer than ``max_length``."""
    most = recipe.model.max_length
    longer = tokens.lengths > most
    if not longer.any():
        return []
    share = longer.mean()
    severity = Severity.WARNING if share > MUCH_CUT else Severity.NOTE
    enough = int(numpy.percentile(tokens.lengths, 95))
    kept = numpy.minimum(tokens.lengths, most).sum() / tokens.lengths.sum()
    what = f"training texts ({100 * share:.1f} %) are longer than max_length {most}; "
    what += f"{100 * kept:.0f} % of all tokens are kept"
    advice = f"--max_length {enough} would keep 95 % of the texts whole, if the model has room."
    order = numpy.argsort(-tokens.lengths, kind="stable")
    examples = some(example(frame.iloc[i], f"{tokens.lengths[i]:,} tokens") for i in order)
    return [Finding(severity, what, int(longer.sum()), advice, examples)]


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
        example(frame.iloc[i], f"{tokens.unknown[i]} of {tokens.lengths[i]} unknown") for i in order
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
    epochs = f"{total / steps:.3g}"
    return f"{seen}, {steps:,} steps of {batch}; {total:,} steps in {epochs} epochs"

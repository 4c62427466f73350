"""Rows as a model takes them: computed once, kept on disk, read from there as they are needed."""

import hashlib
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import pandas
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from finetune.data import sources

# Rows that are encoded together: so many, and of long ones about so many bytes.
MOST_ROWS, MOST_BYTES = 1000, 4 * 2**20
# Above so many bytes the user sees how far it is.
LONG = 50 * 2**20


def once(
    rows: Dataset | pandas.DataFrame,
    digest: str,
    tokenizer: PreTrainedTokenizerBase,
    function: Callable[[dict[str, list[Any]]], dict[str, list[Any]]],
    *settings: object,
) -> Dataset:
    """What ``function`` makes of some hundred rows at a time, from the cache if it is there.

    The result is mapped into memory: it takes up none that anything else could use. Only that of
    a fast tokenizer is kept.

    Args:
        rows: on disk, or as a frame whose column id does not count.
        digest: stands for all that rows on disk hold.
        function: columns of rows -> columns of as many or other rows.
        settings: what else changes its result; the code of this project does so too.
    """
    if isinstance(rows, pandas.DataFrame):
        rows = Dataset.from_pandas(rows.drop(columns="id"), preserve_index=False)
        digest = _content(rows)
    if not tokenizer.is_fast:
        # Nothing says all that a tokenizer written in Python depends on.
        return rows.map(function, batched=True, remove_columns=rows.column_names)
    said = [digest, _identity(tokenizer), version("tokenizers"), _code(), *map(repr, settings)]
    key = hashlib.sha256("\0".join(said).encode()).hexdigest()[:32]
    file = sources.cache("encoded") / f"{key}.arrow"
    file.parent.mkdir(parents=True, exist_ok=True)
    size = rows.data.nbytes
    each = max(1, size // max(1, rows.data.num_rows))
    shown = datasets.are_progress_bars_disabled()
    (datasets.enable_progress_bars if size > LONG else datasets.disable_progress_bars)()
    try:
        # One process of a machine fills the cache; the others find it filled.
        with PartialState().local_main_process_first():
            return rows.map(
                function,
                batched=True,
                batch_size=max(1, min(MOST_ROWS, MOST_BYTES // each)),
                remove_columns=rows.column_names,
                cache_file_name=str(file),
                load_from_cache_file=True,
                new_fingerprint=key,
                desc="tokens",
            )
    finally:
        (datasets.disable_progress_bars if shown else datasets.enable_progress_bars)()


def _content(rows: Dataset) -> str:
    """A hash of all cells."""
    whole = hashlib.sha256()
    for name in rows.column_names:
        for buffer in rows.data.column(name).combine_chunks().buffers():
            whole.update(buffer or b"")
    return whole.hexdigest()


def _identity(tokenizer: Any) -> str:
    """All of a fast tokenizer that decides what it makes of a text."""
    made = json.loads(tokenizer.backend_tokenizer.to_str())
    # Left by the last call, and said anew with every other.
    made.pop("truncation")
    made.pop("padding")
    sides = [tokenizer.truncation_side, tokenizer.padding_side]
    said = [tokenizer.model_input_names, tokenizer.special_tokens_map, tokenizer.chat_template]
    return json.dumps([type(tokenizer).__name__, made, sides, *said])


def _code() -> str:
    """A hash of this package: what other code made is not taken for this one's."""
    whole = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        whole.update(file.read_bytes())
    return whole.hexdigest()

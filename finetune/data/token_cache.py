"""Caches tokenized rows on disk: computed once, memory-mapped in every later run.

The key of a cached file is a hash of all that decides its content: the rows, the tokenizer, the
settings of the task, and this project's code in data/ and tasks/. Only results of fast tokenizers
are kept, because their state is known completely.
"""

import hashlib
import inspect
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import pandas
from datasets import Dataset, Features, Value
from transformers import PreTrainedTokenizerBase

from finetune.data import sources

# Rows that are encoded together: at most so many, and about so many bytes of long ones.
MOST_ROWS, MOST_BYTES = 1000, 4 * 2**20
# Above so many bytes a progress bar is shown.
LONG = 50 * 2**20
PACKAGE = Path(__file__).parents[1]
# What encodes a text, and writes a chat as one.
LIBRARIES = ("tokenizers", "transformers", "jinja2")


def once(
    rows: Dataset | pandas.DataFrame,
    digest: str,
    tokenizer: PreTrainedTokenizerBase,
    function: Callable[..., dict[str, list[Any]]],
    *settings: object,
    numbered: bool = False,
) -> Dataset:
    """Returns what ``function`` makes of the rows, in batches, from the cache if it is there.

    The result is memory-mapped.

    Args:
        rows: on disk, or a frame whose column id is ignored.
        digest: a hash of rows on disk.
        function: columns of rows -> columns of the same or another number of rows. The file that
            defines it is part of the key.
        settings: what else decides its result.
        numbered: whether ``function`` also takes the numbers of its rows.
    """
    if isinstance(rows, pandas.DataFrame):
        texts = rows.drop(columns="id")
        # Offsets of 32 bits reach 2 GiB of a column.
        large = Features({str(name): Value("large_string") for name in texts})
        rows = Dataset.from_pandas(texts, features=large, preserve_index=False)
        digest = _content(rows)
    if not tokenizer.is_fast:
        # What a tokenizer written in Python depends on is not known.
        return rows.map(
            function, batched=True, with_indices=numbered, remove_columns=rows.column_names
        )
    code = _code(Path(inspect.getfile(function)))
    libraries = [version(name) for name in LIBRARIES]
    parts = [digest, _identity(tokenizer), *libraries, code, *map(repr, settings)]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    file = sources.cache("encoded") / f"{key}.arrow"
    size = rows.data.nbytes
    each = max(1, size // max(1, rows.data.num_rows))
    shown = datasets.are_progress_bars_disabled()
    (datasets.enable_progress_bars if size > LONG else datasets.disable_progress_bars)()
    try:
        with sources.filling(file):
            return rows.map(
                function,
                batched=True,
                with_indices=numbered,
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
    """Returns a hash of all cells."""
    whole = hashlib.sha256()
    for name in rows.column_names:
        whole.update(name.encode() + b"\0")
        for buffer in rows.data.column(name).combine_chunks().buffers():
            whole.update(buffer or b"")
    return whole.hexdigest()


def _identity(tokenizer: Any) -> str:
    """Returns all of a fast tokenizer that decides how it encodes a text."""
    made = json.loads(tokenizer.backend_tokenizer.to_str())
    # Left over from the last call, and set again by every call.
    made.pop("truncation")
    made.pop("padding")
    sides = [tokenizer.truncation_side, tokenizer.padding_side]
    more = [tokenizer.model_input_names, tokenizer.special_tokens_map, tokenizer.chat_template]
    return json.dumps([type(tokenizer).__name__, made, sides, *more])


def _code(task: Path) -> str:
    """Returns a hash of the code that decides the result.

    That is data/, tasks/, and the file of the task, which may be one from outside the package.
    """
    whole = hashlib.sha256()
    own = {file for floor in ("data", "tasks") for file in (PACKAGE / floor).rglob("*.py")}
    for file in sorted(own | {task.resolve()}):
        whole.update(file.read_bytes())
    return whole.hexdigest()

"""Checks the rows of a table: takes the columns that a task needs and rejects unusable rows.

A row is a text or a pair of texts, an image, or a document for a language model: a text, a prompt
with its completion, or a chat.
"""

import math
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import numpy
import pandas

from finetune.data import chats, image_decoding, readers
from finetune.errors import UserError
from finetune.recipe import Data

TEXTS, IMAGES, DOCUMENTS = "texts", "images", "documents"
# With a larger share of unusable rows the file is broken, not the rows.
MOST_REJECTED = 0.01
# Images that are decoded before the first of them is released.
WINDOW = 1000
# Why rows without any text are dropped: blank lines between texts are no mistakes.
BLANK = "blank row left out"


def content_columns(columns: Sequence[str], data: Data, content: str) -> dict[str, str]:
    """Returns the parts of a row and the name of the column that has each.

    Args:
        columns: those of the table, which decide what kind of document a row is.
        content: ``TEXTS``, ``IMAGES`` or ``DOCUMENTS``.
    """
    if content == IMAGES:
        return {"image": data.image}
    if content == DOCUMENTS:
        if data.messages in columns:
            return {"messages": data.messages}
        if {data.prompt, data.completion} <= set(columns):
            return {"prompt": data.prompt, "completion": data.completion}
        return {"text": data.text}
    return {"text": data.text} | ({"text_pair": data.text_pair} if data.text_pair else {})


def usable(
    table: readers.Table, split: str, data: Data, content: str, labelled: bool
) -> pandas.DataFrame:
    """Returns the usable rows with an id: texts as str, chats as JSON, images with their digest.

    Labels stay as they were read. Unusable rows are appended to ``table.rejected``.

    Raises:
        UserError: a column is missing, or too many rows are unusable.
    """
    parts = content_columns([str(c) for c in table.rows.columns], data, content)
    columns = {key: _column(table, name, key) for key, name in parts.items()}
    if labelled:
        columns["label"] = _column(table, data.label, "label")
    frame = pandas.DataFrame(columns)
    # What the reader rejected is no row of the table.
    read = len(frame) + len(table.rejected)
    frame = _without_empty(frame, table, data, labelled)
    if "messages" in frame:
        frame["messages"] = [chats.as_text(cell) for cell in frame["messages"]]
    if content == IMAGES:
        frame = _inspected(frame, table)
    if len(table.rejected) > MOST_REJECTED * read:
        first = table.rejected[0]
        raise UserError(
            f"{readers.where(first['source'], first['line'])}: {first['reason']}; "
            f"{len(table.rejected)} of {read} rows cannot be used, fix "
            f"{'or remove them' if content == IMAGES else 'the file'}"
        )
    for column in parts if content != IMAGES else ():
        # dtype object keeps "NA" and "007" as written, and turns numbers of JSON into their text.
        frame[column] = [v if isinstance(v, str) else str(v) for v in frame[column]]
    if labelled:
        labels = [v.item() if isinstance(v, numpy.generic) else v for v in frame["label"]]
        frame["label"] = pandas.Series(labels, index=frame.index, dtype=object)
    frame.insert(0, "id", [f"{split}-{line}" for line in frame.index])
    return frame


def _column(table: readers.Table, name: str, key: str) -> pandas.Series:
    if name not in table.rows.columns:
        known = [str(c) for c in table.rows.columns]
        raise readers.unknown_name(table.source, "column", name, known, key)
    return table.rows.loc[:, name]


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def _without_empty(
    frame: pandas.DataFrame, table: readers.Table, data: Data, labelled: bool
) -> pandas.DataFrame:
    """Drops rows with an empty cell or a broken chat; they go to ``table.rejected``."""
    several = data.problem_type == "multi_label_classification"
    keep = []
    for line, cells in zip(frame.index, frame.itertuples(index=False, name=None), strict=True):
        row = dict(zip(frame.columns, cells, strict=True))
        # An empty text where several labels are possible means that none applies.
        none_apply = several and isinstance(row.get("label"), str)
        empty = [
            getattr(data, part)
            for part, value in row.items()
            if _is_missing(value) and not (part == "label" and none_apply)
        ]
        reason = f"empty {' and '.join(empty)}" if empty else None
        if "messages" in row and not empty:
            wrong = chats.fault(row["messages"])
            reason = f"{data.messages} {wrong}" if wrong else None
        keep.append(reason is None)
        if empty == [data.text] and not labelled:
            table.fixed[BLANK] = table.fixed.get(BLANK, 0) + 1
        elif reason:
            source, at = table.place(line)
            table.rejected.append({"source": source, "line": at, "reason": reason})
    return frame.loc[keep].copy()


def _inspected(frame: pandas.DataFrame, table: readers.Table) -> pandas.DataFrame:
    """Adds each image's digest; unusable images go to ``table.rejected``."""

    def inspect(image: str | bytes) -> tuple[str, list[str]] | image_decoding.Unusable:
        try:
            return image_decoding.inspect(image)
        except image_decoding.Unusable as reason:
            return reason

    digests, keep, fixed = [], [], Counter(table.fixed)
    # Threads suffice: PIL decodes outside the interpreter's lock, and each thread has one image.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # One window at a time, because all images submitted at once are in memory.
        windows = (frame["image"].iloc[i : i + WINDOW] for i in range(0, len(frame), WINDOW))
        inspected = chain.from_iterable(pool.map(inspect, window) for window in windows)
        for line, image, found in zip(frame.index, frame["image"], inspected, strict=True):
            keep.append(not isinstance(found, image_decoding.Unusable))
            if isinstance(found, image_decoding.Unusable):
                source, at = table.place(line)
                named = isinstance(image, str) and at is not None
                reason = f"{image} {found}" if named else str(found)
                table.rejected.append({"source": source, "line": at, "reason": reason})
            else:
                digests.append(found[0])
                fixed.update(found[1])
    table.fixed = dict(fixed)
    frame = frame.loc[keep].copy()
    frame.insert(1, "digest", pandas.Series(digests, index=frame.index, dtype=object))
    return frame

"""Checks the rows of a table: takes the columns that a task needs and rejects unusable rows.

A row is a text or a pair of texts, an image, or a document for a language model: a text, a prompt
with its completion, or a chat.
"""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy
import pandas

from finetune.data import chats, image_files, label_cells, readers
from finetune.data.tables import listed
from finetune.errors import UserError
from finetune.recipe import Data

TEXTS, IMAGES, DOCUMENTS = "texts", "images", "documents"
# With more unusable rows than this share and this count the file is broken, not the rows.
MOST_REJECTED, MOST_REJECTED_ROWS = 0.01, 20
# Images that are decoded before the first of them is released.
WINDOW = 1000
# Why rows without any text are dropped: blank lines between texts are no mistakes.
BLANK = "blank row left out"
JOINED, NO_PAIR = "list of words as a text", "empty second text"


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
    columns = {key: table.column(name, key) for key, name in parts.items()}
    if labelled:
        columns["label"] = label_cells.column(table, data, split)
    frame = pandas.DataFrame(columns)
    # What the reader rejected is no row of the table.
    read = len(frame) + len(table.rejected)
    for column in parts if content != IMAGES else ():
        if column != "messages":
            frame[column] = _as_texts(frame.loc[:, column], table, column)
    frame = _without_empty(frame, table, data, labelled)
    if "messages" in frame:
        frame["messages"] = [chats.as_text(cell) for cell in frame["messages"]]
    if content == IMAGES:
        frame = _inspected(frame, table)
    if len(table.rejected) > most_rejected(read, data):
        first = table.rejected[0]
        raise UserError(
            f"{readers.where(first['source'], first['line'])}: {first['reason']}; "
            f"{len(table.rejected)} of {read} rows cannot be used, fix "
            f"{'or remove them' if content == IMAGES else 'the file'}, or set `max_rejected:`"
        )
    if labelled:
        labels = [v.item() if isinstance(v, numpy.generic) else v for v in frame["label"]]
        frame["label"] = pandas.Series(labels, index=frame.index, dtype=object)
    frame.insert(0, "id", [f"{split}-{line}" for line in frame.index])
    return frame


def most_rejected(read: int, data: Data) -> float:
    """Returns how many of the rows that were read may be unusable."""
    if data.max_rejected is not None:
        return data.max_rejected if data.max_rejected >= 1 else data.max_rejected * read
    return max(MOST_REJECTED * read, min(MOST_REJECTED_ROWS, read / 2))


def _as_texts(cells: pandas.Series, table: readers.Table, part: str) -> pandas.Series:
    """Returns cells as texts: numbers as written, lists of words joined, a missing one as "".

    Raises:
        UserError: a cell is an object, or a list of something else.
    """
    out = []
    for line, cell in cells.items():
        if isinstance(cell, str):
            out.append(cell)
        elif isinstance(cell, list | tuple | numpy.ndarray):
            if not all(isinstance(word, str) for word in cell):
                kinds = type(cell[0]).__name__
                raise UserError(
                    f"{table.at(line)}: {part} is a list of {kinds}; a text or a list of words is "
                    "needed, chats go in the column `messages:` names"
                )
            table.fixed[JOINED] = table.fixed.get(JOINED, 0) + 1
            out.append(" ".join(cell))
        elif isinstance(cell, dict):
            raise UserError(
                f"{table.at(line)}: {part} is an object with {listed(list(cell))}, not a text; "
                "write its text in a column of its own"
            )
        else:
            # "NA" and "007" stay as written, and numbers of JSON become their text.
            out.append("" if readers.is_missing(cell) else str(cell))
    return pandas.Series(out, index=cells.index, dtype=object)


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
            part if part == "label" else getattr(data, part)
            for part, value in row.items()
            if readers.is_missing(value) and not (part == "label" and none_apply)
        ]
        if data.text_pair in empty and len(empty) == 1:
            # A second text may be missing: a choice that is not there, a question without context.
            table.fixed[NO_PAIR] = table.fixed.get(NO_PAIR, 0) + 1
            empty = []
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

    def inspect(image: str | bytes) -> tuple[str, list[str]] | image_files.Unusable:
        try:
            return image_files.inspect(image)
        except image_files.Unusable as reason:
            return reason

    digests, keep, fixed = [], [], Counter(table.fixed)
    # Threads suffice: PIL decodes outside the interpreter's lock, and each thread has one image.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # One window at a time, because all images submitted at once are in memory.
        windows = (frame["image"].iloc[i : i + WINDOW] for i in range(0, len(frame), WINDOW))
        inspected = chain.from_iterable(pool.map(inspect, window) for window in windows)
        for line, image, found in zip(frame.index, frame["image"], inspected, strict=True):
            keep.append(not isinstance(found, image_files.Unusable))
            if isinstance(found, image_files.Unusable):
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

"""Checks the rows of a table: takes the columns that a task needs and rejects unusable rows.

A row is a text or a pair of texts, a text with entities, an image, a document for a language model
(a text, a prompt with its completion, or a chat), a source with its target for an encoder-decoder,
a question about a context (see ``questions``),
or a query with its passages (see ``retrieval``).
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import numpy
import pandas

from finetune.data import (
    chats,
    document_columns,
    image_decoding,
    label_cells,
    questions,
    readers,
    retrieval,
    tagged_texts,
)
from finetune.data.tables import listed
from finetune.data.tagged_texts import TAGGED
from finetune.errors import UserError
from finetune.recipe import Data

TEXTS, IMAGES, DOCUMENTS = "texts", "images", "documents"
QUESTIONS, PAIRS = "questions", "sources with targets"
# With more unusable rows than this share and this count the file is broken, not the rows.
MOST_REJECTED, MOST_REJECTED_ROWS = 0.01, 20
# Images that are decoded before the first of them is released.
WINDOW = 1000
# Why rows without any text are dropped: blank lines between texts are no mistakes.
BLANK = "blank row left out"
JOINED, NO_PAIR = "list of words as a text", "empty second text"


def layout(
    source: str, sample: Mapping[str, Sequence[Any]], data: Data, content: str
) -> document_columns.Layout:
    """Returns the parts of a row and the columns that make each.

    Args:
        source: names the table in messages.
        sample: the table's columns, of some rows; they decide what kind of document a row is.
        content: ``TEXTS``, ``IMAGES``, ``DOCUMENTS`` or ``PAIRS``.

    Raises:
        UserError: a column is missing.
    """
    if content == DOCUMENTS:
        return document_columns.find(source, sample, data)
    names = _names(data, content)
    for key, name in names.items():
        if name not in sample:
            raise readers.unknown_name(source, "column", name, list(sample), key)
    return document_columns.Layout({key: (name,) for key, name in names.items()})


def _names(data: Data, content: str) -> dict[str, str]:
    """Returns the columns of texts or images by their keys."""
    if content == IMAGES:
        return {"image": data.image}
    if content == PAIRS:
        return {"source": data.source, "target": data.target}
    return {"text": data.text} | ({"text_pair": data.text_pair} if data.text_pair else {})


def usable(
    table: readers.Table, split: str, data: Data, content: str, labelled: bool
) -> pandas.DataFrame:
    """Returns the usable rows with an id: texts as str, chats as JSON, images with their digest.

    Labels stay as they were read. Unusable rows are appended to ``table.rejected``.

    Raises:
        UserError: a column is missing, or too many rows are unusable.
    """
    if content == QUESTIONS:
        table.rows = questions.flat(table.rows)
    # What the reader rejected is no row of the table.
    read = len(table.rows) + len(table.rejected)
    if content == TAGGED:
        frame = tagged_texts.read(table, data, labelled)
    elif content == QUESTIONS:
        frame = questions.usable(table, data)
    elif content == retrieval.RETRIEVAL:
        frame = retrieval.usable(table, data)
    else:
        frame = _plain(table, split, data, content, labelled)
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
    if "id" not in frame:
        frame.insert(0, "id", [f"{split}-{line}" for line in frame.index])
    return frame


def _plain(
    table: readers.Table, split: str, data: Data, content: str, labelled: bool
) -> pandas.DataFrame:
    """Returns the usable rows of texts, images or documents, as ``usable`` does, without an id."""
    rows = table.rows
    first = rows.iloc[: document_columns.SAMPLE]
    sample = {str(name): first.iloc[:, i].tolist() for i, name in enumerate(rows.columns)}
    if content == DOCUMENTS:
        parts = document_columns.find(table.source, sample, data)
        columns = {name: rows.loc[:, name].tolist() for name in parts.columns}
    else:
        # The table finds a column whose name is written in another way.
        names = _names(data, content)
        parts = document_columns.Layout({key: (name,) for key, name in names.items()})
        columns = {name: _cells(table, name, key).tolist() for key, name in names.items()}
    frame = pandas.DataFrame(parts.documents(columns), index=rows.index, dtype=object)
    if labelled:
        frame["label"] = label_cells.column(table, data, split)
    table.fixed |= dict.fromkeys(parts.notes, len(frame))
    for column in parts.parts if content in {TEXTS, PAIRS} else ():
        frame[column] = _as_texts(frame.loc[:, column], table, column)
    frame = _without_empty(frame, table, parts, data, labelled)
    if content == IMAGES:
        frame = _inspected(frame, table)
    elif content == DOCUMENTS:
        frame = _documents(frame, table, parts)
    return frame


def _cells(table: readers.Table, name: str, key: str) -> pandas.Series:
    """Returns a column, or a part of its objects: of ``translation.en`` those of the key en."""
    known, (column, dot, part) = [str(c) for c in table.rows.columns], name.partition(".")
    if not dot or name in known or column not in known:
        return table.column(name, key)
    cells = table.column(column, key)
    return cells.map(lambda cell: cell.get(part) if isinstance(cell, dict) else None)


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
    frame: pandas.DataFrame,
    table: readers.Table,
    parts: document_columns.Layout,
    data: Data,
    labelled: bool,
) -> pandas.DataFrame:
    """Drops rows with an empty cell; they go to ``table.rejected``."""
    several = data.problem_type == "multi_label_classification"
    names = {part: parts.name(part) for part in parts.parts} | {"label": "label"}
    keep = []
    for line, cells in zip(frame.index, frame.itertuples(index=False, name=None), strict=True):
        row = dict(zip(frame.columns, cells, strict=True))
        # An empty text where several labels are possible means that none applies.
        none_apply = several and isinstance(row.get("label"), str)
        empty = [
            part
            for part, value in row.items()
            if readers.is_missing(value) and not (part == "label" and none_apply)
        ]
        if empty == ["text_pair"]:
            # A second text may be missing: a choice that is not there, a question without context.
            table.fixed[NO_PAIR] = table.fixed.get(NO_PAIR, 0) + 1
            empty = []
        keep.append(not empty)
        if empty == ["text"] and not labelled:
            table.fixed[BLANK] = table.fixed.get(BLANK, 0) + 1
        elif empty:
            source, at = table.place(line)
            reason = f"empty {' and '.join(names[part] for part in empty)}"
            table.rejected.append({"source": source, "line": at, "reason": reason})
    return frame.loc[keep].copy()


def document(part: str, column: str, cell: Any) -> tuple[str, str | None, list[str]]:
    """Returns a part of a document as text, what is wrong with it, and what was changed.

    Args:
        column: names the part in messages.
    """
    if part == "messages":
        try:
            chat = chats.read(cell)
        except chats.Unusable as wrong:
            return "", f"{column} {wrong}", []
        return chat.as_text(), None, chat.changes
    if chats.is_chat(cell):
        return "", f"{column} is a list of messages, not a text; set --messages {column}", []
    if isinstance(cell, list | dict):
        what = "a list" if isinstance(cell, list) else "an object"
        return "", f"{column} is {what}, not a text", []
    return str(cell), None, []


def _documents(
    frame: pandas.DataFrame, table: readers.Table, parts: document_columns.Layout
) -> pandas.DataFrame:
    """Reads the parts of documents as text; broken ones go to ``table.rejected``."""
    keep, fixed = [], Counter(table.fixed)
    made: dict[str, list[str]] = {part: [] for part in parts.parts}
    for line, cells in zip(
        frame.index, frame[list(made)].itertuples(index=False, name=None), strict=True
    ):
        read = [document(p, parts.name(p), c) for p, c in zip(made, cells, strict=True)]
        reason = next((fault for _, fault, _ in read if fault), None)
        keep.append(reason is None)
        if reason:
            source, at = table.place(line)
            table.rejected.append({"source": source, "line": at, "reason": reason})
        else:
            fixed.update(change for _, _, changes in read for change in changes)
        for part, (text, _, _) in zip(made, read, strict=True):
            made[part].append(text)
    table.fixed = dict(fixed)
    for part, texts in made.items():
        frame[part] = pandas.Series(texts, index=frame.index, dtype=object)
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

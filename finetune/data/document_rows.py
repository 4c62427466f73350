"""Documents for a language model: a text, a prompt with its completion, or a chat."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas

from finetune.data import chats, document_columns, plain_rows, readers
from finetune.data.document_columns import Layout
from finetune.recipe import Data


class Documents(plain_rows.PlainRows):
    """Documents; which of its kinds a table has, its first rows decide."""

    name = "documents"

    def layout(self, source: str, sample: Mapping[str, Sequence[Any]], data: Data) -> Layout:
        return document_columns.find(source, sample, data)

    def cells(self, table: readers.Table, data: Data) -> tuple[Layout, dict[str, list[Any]]]:
        rows = table.rows
        first = rows.iloc[: document_columns.SAMPLE]
        sample = {str(name): first.iloc[:, i].tolist() for i, name in enumerate(rows.columns)}
        parts = document_columns.find(table.source, sample, data)
        return parts, {name: rows.loc[:, name].tolist() for name in parts.columns}

    def finished(
        self, frame: pandas.DataFrame, table: readers.Table, parts: Layout, data: Data
    ) -> pandas.DataFrame:
        return _documents(super().finished(frame, table, parts, data), table, parts)


DOCUMENTS = Documents()


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


def _documents(frame: pandas.DataFrame, table: readers.Table, parts: Layout) -> pandas.DataFrame:
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

"""Rows whose parts are cells of a table: what texts, pairs, images and documents share."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import pandas

from finetune.data import label_cells, readers
from finetune.data.document_columns import Layout
from finetune.data.row_kinds import RowKind
from finetune.data.tables import listed
from finetune.errors import UserError
from finetune.recipe import Data

# Why rows without any text are dropped: blank lines between texts are no mistakes.
BLANK = "blank row left out"
JOINED, NO_PAIR = "list of words as a text", "empty second text"


class PlainRows(RowKind):
    """Rows whose parts are cells of a table."""

    @abstractmethod
    def layout(self, source: str, sample: Mapping[str, Sequence[Any]], data: Data) -> Layout:
        """Returns the parts of a row and the columns that make each.

        Args:
            source: names the table in messages.
            sample: the table's columns, of some rows.

        Raises:
            UserError: a column is missing.
        """

    @abstractmethod
    def cells(self, table: readers.Table, data: Data) -> tuple[Layout, dict[str, list[Any]]]:
        """Returns the parts of a row, and the columns that make them.

        Raises:
            UserError: a column is missing.
        """

    def usable(
        self, table: readers.Table, split: str, data: Data, labelled: bool
    ) -> pandas.DataFrame:
        parts, columns = self.cells(table, data)
        frame = pandas.DataFrame(parts.documents(columns), index=table.rows.index, dtype=object)
        if labelled and self.labels:
            frame["label"] = label_cells.column(table, data, split)
        table.fixed |= dict.fromkeys(parts.notes, len(frame))
        return self.finished(frame, table, parts, data)

    def finished(
        self, frame: pandas.DataFrame, table: readers.Table, parts: Layout, data: Data
    ) -> pandas.DataFrame:
        """Returns the usable rows among those whose cells are in ``frame``, as ``usable`` does."""
        return without_empty(frame, table, parts, data)


class NamedRows(PlainRows):
    """Plain rows each part of which is one column, which the recipe names."""

    @abstractmethod
    def columns(self, data: Data) -> dict[str, str]:
        """Returns the column of each part, by the part's key in the recipe."""

    def layout(self, source: str, sample: Mapping[str, Sequence[Any]], data: Data) -> Layout:
        names = self.columns(data)
        for key, name in names.items():
            if name not in sample:
                raise readers.unknown_name(source, "column", name, list(sample), key)
        return Layout({key: (name,) for key, name in names.items()})

    def cells(self, table: readers.Table, data: Data) -> tuple[Layout, dict[str, list[Any]]]:
        # The table finds a column whose name is written in another way.
        names = self.columns(data)
        columns = {name: _cells(table, name, key).tolist() for key, name in names.items()}
        return Layout({key: (name,) for key, name in names.items()}), columns


def _cells(table: readers.Table, name: str, key: str) -> pandas.Series:
    """Returns a column, or a part of its objects: of ``translation.en`` those of the key en."""
    known, (column, dot, part) = [str(c) for c in table.rows.columns], name.partition(".")
    if not dot or name in known or column not in known:
        return table.column(name, key)
    cells = table.column(column, key)
    return cells.map(lambda cell: cell.get(part) if isinstance(cell, dict) else None)


def as_texts(frame: pandas.DataFrame, table: readers.Table, parts: Layout) -> None:
    """Makes the parts of rows texts in place, see ``_texts``."""
    for part in parts.parts:
        frame[part] = _texts(frame.loc[:, part], table, part)


def _texts(cells: pandas.Series, table: readers.Table, part: str) -> pandas.Series:
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


def without_empty(
    frame: pandas.DataFrame,
    table: readers.Table,
    parts: Layout,
    data: Data,
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
        if empty == ["text"] and "label" not in row:
            table.fixed[BLANK] = table.fixed.get(BLANK, 0) + 1
        elif empty:
            source, at = table.place(line)
            reason = f"empty {' and '.join(names[part] for part in empty)}"
            table.rejected.append({"source": source, "line": at, "reason": reason})
    return frame.loc[keep].copy()

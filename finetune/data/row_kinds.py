"""The contract of a kind of rows: how a table of them is read, checked and labelled.

One module has one kind: ``texts``, ``image_rows``, ``document_rows``, ``pairs``, ``tagged_texts``,
``questions`` and ``retrieval``. Their instances stand in ``corpus``; nothing there asks which of
them it has.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy
import pandas

from finetune.data import labels, readers, splits
from finetune.recipe import Data

# The problem type of rows without labels.
UNLABELLED = "unlabelled"


class RowKind(ABC):
    """What a row is.

    Attributes:
        name: in the plural, for results.json.
        labels: whether a row may have a label, which a task may leave unread; the targets of a pair
            are a part of it.
        classes: whether labels are classes or numbers, which are encoded; others stay as read.
        mend: what to mend where too many rows are unusable.
        rows: the rows of a split in memory, which know what may not be divided between two.
        alike: whether rows that are nearly the same should have the same label.
        counted: what ``counts`` counts: the things in the plural, and what they are sorted by.
    """

    name: ClassVar[str]
    labels: ClassVar[bool] = True
    classes: ClassVar[bool] = True
    mend: ClassVar[str] = "the file"
    rows: ClassVar[type[splits.Frame]] = splits.Frame
    alike: ClassVar[bool] = True
    counted: ClassVar[tuple[str, str]] = ("rows", "class")

    def read(self, files: str | list[str], data: Data, labelled: bool) -> readers.Table:
        """Reads a file, files, or a folder.

        Raises:
            UserError: as ``readers.read_table`` does.
        """
        return readers.read_table(files, data)

    def dataset(self, data: Data, labelled: bool) -> tuple[dict[str, readers.Table], str | None]:
        """Reads all splits of ``data.dataset``; also returns the hub commit, if any.

        Raises:
            UserError: it cannot be found or read.
        """
        return readers.dataset(data)

    @abstractmethod
    def usable(
        self, table: readers.Table, split: str, data: Data, labelled: bool
    ) -> pandas.DataFrame:
        """Returns the usable rows: their content, label, and id if they have one.

        The others go to ``table.rejected``, and what was changed is counted in ``table.fixed``.

        Raises:
            UserError: a column is missing.
        """

    def encode(
        self,
        frames: dict[str, pandas.DataFrame],
        tables: Mapping[str, readers.Table],
        data: Data,
        labelled: bool,
    ) -> tuple[list[str], str]:
        """Encodes the labels of all splits in place; returns their names and the problem type.

        Raises:
            UserError: a label is of another type, or does not occur in train.
        """
        if not (labelled and self.labels):
            return [], UNLABELLED
        if not self.classes:
            return [], self.name
        return labels.encode(frames, dict(tables), data), data.problem_type

    def encode_by(
        self, label_names: list[str], frame: pandas.DataFrame, table: readers.Table, data: Data
    ) -> None:
        """Encodes the labels of new rows in place, by the names of those that a model knows.

        Raises:
            UserError: a label is of another type, or unknown.
        """
        if self.classes:
            labels.encode_by(label_names, frame, table, data)

    def beside(self, data: Data) -> list[str]:
        """Returns texts beside the rows that a score depends on, in their order."""
        return []

    def label_text(self, label: Any, label_names: list[str]) -> str:
        """Returns a label, as ``encode`` leaves it, for people to read."""
        if isinstance(label, float):
            return f"{label:g}"
        if isinstance(label, list):
            return ", ".join(n for n, on in zip(label_names, label, strict=True) if on)
        return label_names[label]

    def counts(self, labels: Iterable[Any], label_names: list[str]) -> dict[str, int]:
        """Returns how many rows have each class, or a regression's none."""
        found = dict.fromkeys(label_names, 0)
        for label in labels if label_names else ():
            chosen = [label] if isinstance(label, int) else numpy.flatnonzero(label)
            for place in chosen:
                found[label_names[place]] += 1
        return found

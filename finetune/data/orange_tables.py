"""Reads the published splits of texts that Orange's text add-on has as .tab files."""

import csv
from pathlib import Path

import pandas

from finetune.data.tables import Table

# Below the names of the columns: their types, their roles, and a line without content.
HEADER = [1, 2, 3]


def splits(train: Path, name: str, unread: str | None = None) -> dict[str, Table]:
    """Reads train and test: tab-separated columns ``text`` and ``label``, nothing is quoted.

    Args:
        train: the file of the training split; that of the test split lies beside it.
        name: of the data set, for messages.
        unread: a split that stays empty.
    """
    tables = {}
    for split in ("train", "test"):
        if split == unread:
            tables[split] = Table(pandas.DataFrame(), f"{name} [{split}]")
            continue
        file = train.with_name(train.name.replace("train", split))
        rows = pandas.read_csv(
            file,
            sep="\t",
            skiprows=HEADER,
            quoting=csv.QUOTE_NONE,
            keep_default_na=False,
            dtype=object,
        )
        rows = rows.rename(columns={"Category": "label", "Text": "text"})
        # Line numbers of the file, from 1.
        rows.index = pandas.RangeIndex(len(HEADER) + 2, len(HEADER) + 2 + len(rows))
        tables[split] = Table(rows, f"{name} [{split}]")
    return tables

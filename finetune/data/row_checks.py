"""Checks the rows of a table: those that are of use, with ids, and not too many that are not."""

import numpy
import pandas

from finetune.data import readers
from finetune.data.row_kinds import RowKind
from finetune.errors import UserError
from finetune.recipe import Data

# With more unusable rows than this share and this count the file is broken, not the rows.
MOST_REJECTED, MOST_REJECTED_ROWS = 0.01, 20


def usable(
    table: readers.Table, split: str, data: Data, kind: RowKind, labelled: bool
) -> pandas.DataFrame:
    """Returns the usable rows with an id: texts as str, chats as JSON, images with their digest.

    Labels stay as they were read. Unusable rows are appended to ``table.rejected``.

    Raises:
        UserError: a column is missing, or too many rows are unusable.
    """
    # What the reader rejected is no row of the table.
    rejected = len(table.rejected)
    frame = kind.usable(table, split, data, labelled)
    read = len(table.rows) + rejected
    if len(table.rejected) > most_rejected(read, data):
        first = table.rejected[0]
        raise UserError(
            f"{readers.where(first['source'], first['line'])}: {first['reason']}; "
            f"{len(table.rejected)} of {read} rows cannot be used, fix {kind.mend}, or set "
            "`max_rejected:`"
        )
    if "label" in frame:
        found = [v.item() if isinstance(v, numpy.generic) else v for v in frame["label"]]
        frame["label"] = pandas.Series(found, index=frame.index, dtype=object)
    if "id" not in frame:
        frame.insert(0, "id", [f"{split}-{line}" for line in frame.index])
    return frame


def most_rejected(read: int, data: Data) -> float:
    """Returns how many of the rows that were read may be unusable."""
    if data.max_rejected is not None:
        return data.max_rejected if data.max_rejected >= 1 else data.max_rejected * read
    return max(MOST_REJECTED * read, min(MOST_REJECTED_ROWS, read / 2))

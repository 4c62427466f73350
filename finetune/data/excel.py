"""Reads a sheet of an Excel file."""

import importlib.util
import io
import warnings
from pathlib import Path

import pandas

from finetune.data import table_files
from finetune.data.tables import Table, listed, tidy
from finetune.errors import UserError
from finetune.recipe import Data


def read(path: Path, data: Data, table: Table) -> pandas.DataFrame:
    """Returns the rows of the first sheet that has cells, indexed by their numbers in it.

    Raises:
        UserError: openpyxl is not installed, or the file is broken.
    """
    if importlib.util.find_spec("openpyxl") is None:
        raise UserError(f"{path}: needs openpyxl: pip install 'finetune-recipes[excel]'")
    from openpyxl import load_workbook

    with warnings.catch_warnings():
        # It warns of formats and validations that it does not read; cells are all that is asked.
        warnings.simplefilter("ignore")
        try:
            book = load_workbook(io.BytesIO(table_files.read_bytes(path)), data_only=True)
        except Exception as error:
            # For a broken file it raises anything: BadZipFile, KeyError, ValueError...
            raise UserError(f"{path}: not an Excel file: {str(error)[:80]}") from None
    sheets = [[list(row) for row in s.iter_rows(values_only=True)] for s in book.worksheets]
    full = [i for i, rows in enumerate(sheets) if any(c is not None for row in rows for c in row)]
    if not full:
        return pandas.DataFrame()
    if len(full) > 1:
        titles = listed([book.worksheets[i].title for i in full[1:]])
        table.note(f"{path.name}: sheet {book.worksheets[full[0]].title!r} read, not {titles}")
    rows, numbers = sheets[full[0]], range(1, len(sheets[full[0]]) + 1)
    at = next(i for i, row in enumerate(rows) if any(c is not None for c in row))
    if data.header == "none":
        header, at = [str(i + 1) for i in range(len(rows[0]))], at - 1
    else:
        header = ["" if cell is None else str(cell).strip() for cell in rows[at]]
    body, lines = rows[at + 1 :], list(numbers[at + 1 :])
    return tidy(header, body, lines, path.name, table)

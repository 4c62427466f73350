"""Takes the labels of a table's rows, in whichever columns and spelling they were written."""

import ast
import json
from typing import Any

import numpy
import pandas

from finetune.data.readers import is_missing
from finetune.data.tables import Table, find_column, listed, shown
from finetune.errors import UserError
from finetune.recipe import Data

SINGLE, SEVERAL = "single_label_classification", "multi_label_classification"
PREDICT = "Rows without labels are not tested but predicted: `finetune predict RUN --file FILE`"
# How a column of 0 and 1 is written.
SWITCHES = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}


def column(table: Table, data: Data, split: str) -> pandas.Series:
    """Returns the label cells of a table; lists, also those written as text, as lists.

    Raises:
        UserError: there is no such column, or its cells do not fit the problem type.
    """
    known = [str(c) for c in table.rows.columns]
    one = isinstance(data.label, str) and "," not in data.label
    if split == "test" and one and find_column(str(data.label), known) is None:
        raise UserError(
            f"{table.source}: no column {shown(data.label)} (set `label:`); it has "
            f"{listed(known)}. {PREDICT}"
        )
    names = data.label if isinstance(data.label, list) else [data.label]
    if len(names) == 1 and "," in names[0] and find_column(names[0], known) is None:
        names = [name.strip() for name in names[0].split(",")]
    if len(names) > 1:
        return _of_columns(table, names, data)
    cells = table.column(names[0], "label")
    if split == "test" and len(cells) and all(map(is_missing, cells)):
        raise UserError(f"{table.source}: every label is empty. {PREDICT}")
    if data.problem_type == "regression":
        return cells
    return _unpacked(cells, table, data.problem_type)


def _of_columns(table: Table, names: list[str], data: Data) -> pandas.Series:
    """Returns the names of the columns that have a 1, for each row."""
    if data.problem_type != SEVERAL:
        raise UserError(
            f"{table.source}: label names {len(names)} columns; that needs `problem_type: "
            f"{SEVERAL}`"
        )
    columns, rows = [table.column(name, "label") for name in names], []
    for line, cells in zip(table.rows.index, zip(*columns, strict=True), strict=True):
        switches = [SWITCHES.get(str(cell).strip().casefold()) for cell in cells]
        if None in switches:
            at = switches.index(None)
            raise UserError(
                f"{table.at(line)}: {names[at]} is {shown(cells[at])}; each of several label "
                "columns has 0 or 1"
            )
        rows.append([name for name, on in zip(names, switches, strict=True) if on])
    table.label_names = list(names)
    return pandas.Series(rows, index=table.rows.index, dtype=object)


def _unpacked(cells: pandas.Series, table: Table, problem_type: str) -> pandas.Series:
    out, ones = [], 0
    for line, written in cells.items():
        cell = _literal(written)
        if isinstance(cell, numpy.ndarray | tuple):
            cell = list(cell)
        objects = cell if isinstance(cell, list) else [cell]
        if any(isinstance(item, dict) for item in objects):
            keys = list(next(item for item in objects if isinstance(item, dict)))
            raise UserError(
                f"{table.at(line)}: label is an object with {listed(keys)}; write the name of the "
                "class, or a list of names"
            )
        if problem_type == SINGLE and isinstance(cell, list):
            if len(cell) > 1:
                raise UserError(
                    f"{table.at(line)}: label {shown(cell)} has {len(cell)} entries; for several "
                    f"labels a row set `problem_type: {SEVERAL}`"
                )
            ones += 1
            cell = cell[0] if cell else None
        out.append(cell)
    if ones:
        table.note(f"{ones:,} labels of {table.source} are lists of one: that is the label")
    return pandas.Series(out, index=cells.index, dtype=object)


def _literal(cell: Any) -> Any:
    """Returns a list or object that is written as text in JSON or Python, else the cell."""
    if not isinstance(cell, str):
        return cell
    text = cell.strip()
    if text[:1] + text[-1:] not in {"[]", "{}"}:
        return cell
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return cell


def multi_hot(rows: list[Any], separator: str) -> list[list[int]] | None:
    """Returns the rows as lists of 0 and 1, if all are such lists of one length, at least two.

    Args:
        rows: lists, or texts with a separator.
    """
    out = []
    for row in rows:
        parts = row.split(separator) if isinstance(row, str) else row
        if not isinstance(parts, list) or len(parts) < 2:
            return None
        switches = [SWITCHES.get(str(part).strip().casefold()) for part in parts]
        if None in switches or (out and len(switches) != len(out[0])):
            return None
        out.append(switches)
    return out or None

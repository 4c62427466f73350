"""Reads tables of JSON: a row a line, a list of rows, or a list for each column."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas

from finetune.data.tables import Table, listed, shown
from finetune.errors import UserError

# Where the rows are in an object that holds a whole file.
ROWS = ("data", "rows", "examples", "records", "train", "instances")
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class _RepeatedKeyError(ValueError):
    """A key that an object has twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedKeyError(next(key for key in keys if keys.count(key) > 1))
    return made


def read(text: str, path: Path, table: Table) -> pandas.DataFrame:
    """Returns the rows of a JSON file, indexed by line, or by number in a list.

    Rows that are broken go to ``table.rejected``.

    Raises:
        UserError: the file is one object or list without rows, or has a key twice.
    """
    whole = _whole(text, path)
    if whole is None:
        found = _lines(text, path, table)
    else:
        found = _objects(_rows_of(whole, path), path, table)
    rows, at = found
    if SURROGATE.search(text):
        rows = [_without_surrogates(row, table) for row in rows]
    columns = list(dict.fromkeys(k for row in rows for k in row))
    values = {c: [row.get(c) for row in rows] for c in columns}
    return pandas.DataFrame(values, index=at, dtype=object)


def _whole(text: str, path: Path) -> Any:
    """Returns the value that the whole file is, or None if each line is one."""
    start = text.lstrip()[:1]
    first, _, rest = text.strip().partition("\n")
    if start not in {"[", "{"}:
        return None
    if start == "{" or first.rstrip().endswith("]"):
        # An object or list that ends in the first line is a row, if other lines follow.
        try:
            one = json.loads(first)
        except ValueError:
            one = None
        if one is not None and (rest.strip() or _is_row(one)):
            return None
        if one is None and start == "{" and rest.lstrip()[:1] == "{":
            return None
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except _RepeatedKeyError as twice:
        raise _given_twice(str(twice), path, _line_of_repeat(text, str(twice))) from None
    except ValueError as error:
        if start == "{":
            return None
        line = getattr(error, "lineno", 1)
        raise UserError(f"{path}:{line}: not JSON: {shown(str(error), 80)[1:-1]}") from None


def _is_row(one: Any) -> bool:
    """Returns whether an object is a row, and not a table."""
    if not isinstance(one, dict):
        return False
    return not (_nested(one) or _split(one) or _columns(one))


def _split(one: dict[str, Any]) -> bool:
    """Returns whether names of columns and lists of cells stand apart, as pandas writes them."""
    names, rows = one.get("columns"), one.get("data")
    if not isinstance(names, list) or not isinstance(rows, list):
        return False
    return all(isinstance(row, list) and len(row) == len(names) for row in rows)


def _nested(one: dict[str, Any]) -> str | None:
    """Returns the key whose value is a list of rows, if there is one."""
    keys = [k for k in ROWS if isinstance(one.get(k), list)]
    return next((k for k in keys if all(isinstance(row, dict) for row in one[k])), None)


def _columns(one: dict[str, Any]) -> bool:
    """Returns whether every value is a column: all lists of one length, or objects of one's keys.

    Lists of messages are no column of a table: that has at least two, or one of plain values.
    """
    values = list(one.values())
    if not values:
        return False
    if all(isinstance(v, list) for v in values):
        plain = not any(isinstance(cell, dict) for v in values for cell in v)
        return len({len(v) for v in values}) == 1 and plain
    return all(isinstance(v, dict) and v and v.keys() == values[0].keys() for v in values)


def _rows_of(whole: Any, path: Path) -> Iterable[Any]:
    if isinstance(whole, list):
        return whole
    if key := _nested(whole):
        return whole[key]
    if _split(whole):
        return [dict(zip(whole["columns"], row, strict=False)) for row in whole["data"]]
    if _columns(whole):
        first = next(iter(whole.values()))
        keys = first if isinstance(first, dict) else range(len(first))
        return [{name: values[key] for name, values in whole.items()} for key in keys]
    if _is_row(whole) and not any(isinstance(v, list | dict) for v in whole.values()):
        return [whole]
    raise UserError(
        f"{path}: is one object with {listed(list(whole))}; give a list of rows, rows under "
        "`data`, or lists of one length, one for each column"
    )


def _lines(text: str, path: Path, table: Table) -> tuple[list[dict[str, Any]], list[int]]:
    rows, at = [], []
    for line, written in enumerate(text.split("\n"), 1):
        if not written.strip():
            continue
        try:
            row = json.loads(written, object_pairs_hook=_unique)
            reason = None if isinstance(row, dict) else "not a JSON object"
        except _RepeatedKeyError as twice:
            raise _given_twice(str(twice), path, line) from None
        except (ValueError, RecursionError) as error:
            row, reason = None, f"not JSON: {str(error)[:80]}"
        if reason:
            table.rejected.append({"source": str(path), "line": line, "reason": reason})
        else:
            rows.append(row)
            at.append(line)
    return rows, at


def _objects(
    items: Iterable[Any], path: Path, table: Table
) -> tuple[list[dict[str, Any]], list[int]]:
    rows, at = [], []
    for number, item in enumerate(items, 1):
        if isinstance(item, dict):
            rows.append(item)
            at.append(number)
        else:
            reason = "not a JSON object"
            table.rejected.append({"source": str(path), "line": number, "reason": reason})
    return rows, at


def _given_twice(key: str, path: Path, line: int) -> UserError:
    return UserError(
        f"{path}:{line}: key {shown(key)} is given twice in one object; keep one of them"
    )


def _line_of_repeat(text: str, key: str) -> int:
    """Returns the line where an object has a key for the second time."""
    plain, strict = json.JSONDecoder(), json.JSONDecoder(object_pairs_hook=_unique)
    start, end = 0, len(text)
    for match in re.finditer(r"\{", text):
        if match.start() >= end:
            break
        try:
            strict.raw_decode(text, match.start())
        except _RepeatedKeyError:
            # The innermost object that has the key twice is the last one that is found.
            start = match.start()
            _, end = plain.raw_decode(text, start)
        except ValueError:
            continue
    written = re.escape(json.dumps(key, ensure_ascii=False)) + r"\s*:"
    places = [m.start() for m in re.compile(written).finditer(text, start, end)]
    return text.count("\n", 0, places[-1] if places else start) + 1


def _without_surrogates(value: Any, table: Table) -> Any:
    """Replaces halves of surrogate pairs, which no encoding has, by U+FFFD."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            name = "half of a surrogate pair"
            table.fixed[name] = table.fixed.get(name, 0) + 1
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    elif isinstance(value, list):
        return [_without_surrogates(item, table) for item in value]
    elif isinstance(value, dict):
        pairs = [(k, _without_surrogates(v, table)) for k, v in value.items()]
        return {_without_surrogates(k, table): v for k, v in pairs}
    return value

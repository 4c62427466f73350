"""Encodes labels as class indices, 0/1 vectors or regression targets."""

import math
import re
from collections import Counter
from typing import Any

import numpy
import pandas

from finetune.data import label_cells, readers
from finetune.data.label_cells import SEVERAL, SINGLE
from finetune.data.tables import listed, shown
from finetune.errors import UserError, nearest
from finetune.recipe import Data

# A number as a class is written; 007 is a code.
NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)(\.\d*)?")
# Separators of labels besides the one that a recipe names.
SEPARATORS = ",;|"
DEFAULT_SEPARATOR = ","


def encode(
    frames: dict[str, pandas.DataFrame], tables: dict[str, readers.Table], data: Data
) -> list[str]:
    """Encodes the labels of all splits in place, as the problem type says.

    Returns:
        The class names, by their index; none for regression.

    Raises:
        UserError: a label is of another type, or does not occur in train.
    """
    if data.label_names is not None:
        tables["train"].label_names = _distinct(data.label_names)
    if data.problem_type == SINGLE:
        for split, frame in frames.items():
            _check_types(frame, tables[split])
        return _encode_classes(frames, tables, data)
    if data.problem_type == SEVERAL:
        return _encode_sets(frames, tables, data)
    _encode_numbers(frames, tables, data.decimal)
    return []


def encode_by(
    label_names: list[str], frame: pandas.DataFrame, table: readers.Table, data: Data
) -> None:
    """Encodes the labels of new rows in place, by the names of a model's classes.

    Args:
        label_names: none for a regression.

    Raises:
        UserError: a label is of another type, or is none of the classes.
    """
    frames, tables = {"new": frame}, {"new": table}
    if label_names:
        several = data.problem_type == SEVERAL
        # As text, so that a number counts as the name that it is written as, not as an index.
        frame["label"] = [v if several and isinstance(v, list) else str(v) for v in frame["label"]]
        # The classes stand for the training rows, so that the same rules apply.
        known = [[name] if several else name for name in label_names]
        frames["train"] = pandas.DataFrame({"label": pandas.Series(known, dtype=object)})
        tables["train"] = readers.Table(frames["train"], "the run", label_names)
    encode(frames, tables, data)


def _distinct(names: list[str]) -> list[str]:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"label_names: {shown(twice[0])} is given twice; name each class once")
    return list(names)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _key(value: Any, fold: bool) -> str:
    """Returns what labels of one class have in common, however they are written."""
    text = str(value)
    if NUMBER.fullmatch(text.strip()):
        number = float(text)
        return str(int(number)) if number == int(number) else str(number)
    if text.strip().casefold() in {"true", "false"}:
        return text.strip().casefold()
    return text.strip().casefold() if fold else text


class _Spellings:
    """The class names of train, and the name of any label that is written in another way.

    Numbers and booleans are one class each: 1 and 1.0, True and true. The spelling that occurs most
    often is the name.
    """

    def __init__(self, values: list[Any], table: readers.Table, fold: bool) -> None:
        self.fold = fold
        counts = Counter(str(value) for value in values)
        found: dict[str, list[str]] = {}
        for name in sorted(counts, key=lambda name: (-counts[name], name)):
            found.setdefault(_key(name, fold), []).append(name)
        self.names = {key: names[0] for key, names in found.items()}
        for names in found.values():
            if len(names) > 1:
                written = ", ".join(f"{shown(n)} ({counts[n]:,})" for n in names[:4])
                table.note(f"labels {written} are one class")
        alike: dict[str, list[str]] = {}
        for name in self.names.values():
            alike.setdefault(name.strip().casefold(), []).append(name)
        for names in alike.values():
            if len(names) > 1:
                written = ", ".join(f"{shown(n)} ({counts[n]:,})" for n in names[:4])
                table.note(
                    f"warning: labels {written} differ only in case or blanks and are different "
                    "classes; `--label_case fold` joins them"
                )

    def of(self, value: Any) -> str:
        """Returns the class name that a label is a spelling of, or the label itself."""
        return self.names.get(_key(value, self.fold), str(value))


def _in_order(names: set[str]) -> list[str]:
    """Returns names by value if all are numbers, else sorted."""
    numbers = {name: _number(name) for name in names}
    if all(number is not None for number in numbers.values()):
        return sorted(names, key=lambda name: (numbers[name], name))
    return sorted(names)


def _check_types(frame: pandas.DataFrame, table: readers.Table) -> None:
    def kind(value: Any) -> type:
        # 1 and 1.0 are the same number.
        return int if type(value) is float else type(value)

    first = kind(frame["label"].iloc[0])
    for line, value in frame["label"].items():
        if kind(value) is not first:
            raise UserError(
                f"{table.at(line)}: label {shown(value)} is {type(value).__name__} where the rows "
                f"before have {first.__name__}; write all labels as one type"
            )


def _unlabelled(where: str) -> UserError:
    return UserError(
        f"{where}: label -1 means unlabelled; take a labelled split (`--test validation`), and "
        "predict this one: `finetune predict RUN --file FILE`"
    )


def _encode_classes(
    frames: dict[str, pandas.DataFrame], tables: dict[str, readers.Table], data: Data
) -> list[str]:
    given, fold = tables["train"].label_names, data.label_case == "fold"
    spellings = _Spellings(list(frames["train"]["label"]), tables["train"], fold)
    names = given or _in_order(set(spellings.names.values()))
    if len(names) < 2:
        raise UserError(
            f"{tables['train'].source}: every label is {shown(names[0])}; a classifier needs two "
            "classes (or set `problem_type: regression`)"
        )
    index = {name: i for i, name in enumerate(names)}
    for split, frame in frames.items():
        codes = []
        for line, value in frame["label"].items():
            where = tables[split].at(line)
            if _number(str(value)) == -1:
                raise _unlabelled(where)
            if given and (code := _code(value, index, data)) is not None:
                if not 0 <= code < len(given):
                    raise UserError(
                        f"{where}: label {code} is outside 0 to {len(given) - 1}, the numbers of "
                        f"{listed(given)}; fix the row"
                    )
                codes.append(code)
            elif spellings.of(value) in index:
                codes.append(index[spellings.of(value)])
            else:
                raise _not_in_train(where, value, names)
        frame["label"] = codes
    if len(set(frames["train"]["label"])) < 2:
        only = names[frames["train"]["label"].iloc[0]]
        raise UserError(
            f"{tables['train'].source}: every label is {shown(only)}; a classifier needs two "
            "classes"
        )
    return names


def _code(value: Any, index: dict[str, int], data: Data) -> int | None:
    """Returns the number of a class that a label is, if it is a number and not a name."""
    if isinstance(value, int | numpy.integer) and not isinstance(value, bool):
        return int(value)
    if data.label_names is not None and str(value) not in index:
        number = _key(value, False)
        return int(number) if re.fullmatch(r"-?\d+", number) else None
    return None


def _not_in_train(where: str, value: Any, names: list[str]) -> UserError:
    short = [name for name in names if len(name) <= 24]
    hint = nearest(str(value), short)
    hint = f"it can be {listed(sorted(names))}" if len(hint) > 120 else hint
    return UserError(f"{where}: label {shown(value)} does not occur in train; {hint}".rstrip("; "))


# --- several labels --------------------------------------------------------------------------


def _encode_sets(
    frames: dict[str, pandas.DataFrame], tables: dict[str, readers.Table], data: Data
) -> list[str]:
    table = tables["train"]
    if data.label_names or not _numbers_of_classes(frames, table):
        _decode_multi_hot(frames, table, data)
    for split, frame in frames.items():
        _check_separator(frame, tables[split], data.label_separator)

    def parts(value: Any) -> list[Any]:
        if isinstance(value, str):
            return [p.strip() for p in value.split(data.label_separator) if p.strip()]
        return list(value) if isinstance(value, list | tuple | numpy.ndarray) else [value]

    sets = {split: [parts(v) for v in frame["label"]] for split, frame in frames.items()}
    every = [p for row in sets["train"] for p in row]
    spellings = _Spellings(every, table, data.label_case == "fold")
    names = table.label_names or _in_order(set(spellings.names.values()))
    index = {name: i for i, name in enumerate(names)}
    if table.label_names:
        index = {str(i): i for i in range(len(names))} | index
    for split, frame in frames.items():
        vectors = []
        for line, row in zip(frame.index, sets[split], strict=True):
            vector = [0.0] * len(names)
            for part in row:
                name = spellings.of(part)
                if name not in index:
                    raise _not_in_train(tables[split].at(line), part, names)
                vector[index[name]] = 1.0
            vectors.append(vector)
        frame["label"] = pandas.Series(vectors, index=frame.index, dtype=object)
    return names


def _numbers_of_classes(frames: dict[str, pandas.DataFrame], table: readers.Table) -> bool:
    """Returns whether lists hold the numbers of ``ClassLabel`` names, and not a switch for each."""
    names = table.label_names
    lengths = {len(v) for v in frames["train"]["label"] if isinstance(v, list)}
    return names is not None and lengths != {len(names)}


def _decode_multi_hot(
    frames: dict[str, pandas.DataFrame], table: readers.Table, data: Data
) -> None:
    """Replaces lists of 0 and 1 by the names of the classes that they switch on.

    Raises:
        UserError: ``label_names`` has another number of names than the lists have places.
    """
    decoded = {
        split: label_cells.multi_hot(list(frame["label"]), data.label_separator)
        for split, frame in frames.items()
    }
    rows = decoded["train"]
    if rows is None or any(d is None or len(d[0]) != len(rows[0]) for d in decoded.values()):
        return
    width = len(rows[0])
    names = table.label_names or [str(i) for i in range(width)]
    if len(names) != width:
        raise UserError(
            f"{table.source}: labels are lists of {width}, label_names has {len(names)} names"
        )
    hint = "" if table.label_names else ", `label_names:` names them"
    table.note(f"labels read as {width} places of 0 or 1{hint}")
    table.label_names = names
    for split, frame in frames.items():
        found = decoded[split]
        assert found is not None
        cells = [[n for n, on in zip(names, row, strict=True) if on] for row in found]
        frame["label"] = pandas.Series(cells, index=frame.index, dtype=object)


def _check_separator(frame: pandas.DataFrame, table: readers.Table, separator: str) -> None:
    """Checks that texts of labels are not separated by another sign than the default one."""
    texts = [value for value in frame["label"] if isinstance(value, str)]
    if separator != DEFAULT_SEPARATOR or any(separator in text for text in texts):
        return
    for sign in SEPARATORS:
        first = next((text for text in texts if sign in text.strip(sign)), None)
        if first is not None:
            line = frame.index[list(frame["label"]).index(first)]
            raise UserError(
                f"{table.at(line)}: label {shown(first)} has no {separator!r}, and neither has any "
                f"other; if {sign!r} separates labels set `label_separator: {sign!r}`, else "
                "name a sign that no label has"
            )


def _encode_numbers(
    frames: dict[str, pandas.DataFrame], tables: dict[str, readers.Table], decimal: str
) -> None:
    for split, frame in frames.items():
        numbers = []
        for line, value in frame["label"].items():
            text = str(value)
            if decimal != "." and isinstance(value, str):
                # A point would be a sign between thousands, or a number of the other kind.
                text = text.replace(decimal, ".") if "." not in text else ""
            number = _number(text)
            if number is None or not math.isfinite(number):
                comma = decimal == "." and re.fullmatch(r"[+-]?\d+,\d+", str(value).strip())
                hint = "set `--decimal ,`" if comma else "write one"
                raise UserError(
                    f"{tables[split].at(line)}: label {shown(value)} is not a number; {hint}, or "
                    f"set `problem_type: {SINGLE}`"
                )
            numbers.append(number)
        frame["label"] = numbers

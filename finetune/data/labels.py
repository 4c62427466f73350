"""Encodes labels as class indices, 0/1 vectors or regression targets."""

import math
from typing import Any

import numpy
import pandas

from finetune.data import readers
from finetune.errors import UserError, nearest
from finetune.recipe import Data


def encode(
    frames: dict[str, pandas.DataFrame], tables: dict[str, readers.Table], data: Data
) -> list[str]:
    """Encodes the labels of all splits in place, as the problem type says.

    Returns:
        The class names, by their index; none for regression.

    Raises:
        UserError: a label is of another type, or does not occur in train.
    """
    if data.problem_type == "single_label_classification":
        for split, frame in frames.items():
            _check_types(frame, tables[split])
        return _encode_classes(frames, tables)
    if data.problem_type == "multi_label_classification":
        return _encode_sets(frames, tables, data.label_separator)
    _encode_numbers(frames, tables)
    return []


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _class_names(values: list[Any], given: list[str] | None) -> list[str]:
    """Returns the names in ``ClassLabel`` order, else by value if all are numbers, else sorted."""
    if given:
        return given
    names = {str(v) for v in values}
    numbers = {name: _number(name) for name in names}
    if all(number is not None for number in numbers.values()):
        return sorted(names, key=lambda name: (numbers[name], name))
    return sorted(names)


def _check_types(frame: pandas.DataFrame, table: readers.Table) -> None:
    first = type(frame["label"].iloc[0])
    for line, value in frame["label"].items():
        if type(value) is not first:
            raise UserError(
                f"{table.at(line)}: label {value!r} is {type(value).__name__} where the rows "
                f"before have {first.__name__}; write all labels as one type"
            )


def _encode_classes(
    frames: dict[str, pandas.DataFrame], tables: dict[str, readers.Table]
) -> list[str]:
    given = tables["train"].label_names
    names = _class_names(list(frames["train"]["label"]), given)
    if len(names) < 2:
        raise UserError(
            f"{tables['train'].source}: every label is {names[0]!r}; a classifier needs two "
            "classes (or set `problem_type: regression`)"
        )
    index = {name: i for i, name in enumerate(names)}
    for split, frame in frames.items():
        codes = []
        for line, value in frame["label"].items():
            where = tables[split].at(line)
            if _number(str(value)) == -1:
                raise UserError(
                    f"{where}: label -1 means unlabelled; take a labelled split, or rename the "
                    "class"
                )
            if given and isinstance(value, int | numpy.integer) and not isinstance(value, bool):
                if not 0 <= value < len(given):
                    raise UserError(
                        f"{where}: label {value} is outside 0 to {len(given) - 1}, the numbers of "
                        f"{', '.join(given[:12])}; fix the row"
                    )
                codes.append(int(value))
            elif str(value) in index:
                codes.append(index[str(value)])
            else:
                raise UserError(
                    f"{where}: label {value!r} does not occur in train; "
                    f"{nearest(str(value), names)}"
                )
        frame["label"] = codes
    if len(set(frames["train"]["label"])) < 2:
        only = names[frames["train"]["label"].iloc[0]]
        raise UserError(
            f"{tables['train'].source}: every label is {only!r}; a classifier needs two classes"
        )
    return names


def _encode_sets(
    frames: dict[str, pandas.DataFrame], tables: dict[str, readers.Table], separator: str
) -> list[str]:
    def parts(value: Any) -> list[str]:
        if isinstance(value, str):
            return [p.strip() for p in value.split(separator) if p.strip()]
        if isinstance(value, list | tuple | numpy.ndarray):
            return [str(p) for p in value]
        return [str(value)]

    sets = {split: [parts(v) for v in frame["label"]] for split, frame in frames.items()}
    names = _class_names([p for row in sets["train"] for p in row], tables["train"].label_names)
    index = {name: i for i, name in enumerate(names)}
    if tables["train"].label_names:
        index |= {str(i): i for i in range(len(names))}
    for split, frame in frames.items():
        vectors = []
        for line, row in zip(frame.index, sets[split], strict=True):
            vector = [0.0] * len(names)
            for part in row:
                if part not in index:
                    where = tables[split].at(line)
                    raise UserError(
                        f"{where}: label {part!r} does not occur in train; {nearest(part, names)}"
                    )
                vector[index[part]] = 1.0
            vectors.append(vector)
        frame["label"] = pandas.Series(vectors, index=frame.index, dtype=object)
    return names


def _encode_numbers(frames: dict[str, pandas.DataFrame], tables: dict[str, readers.Table]) -> None:
    for split, frame in frames.items():
        numbers = []
        for line, value in frame["label"].items():
            number = _number(str(value))
            if number is None or not math.isfinite(number):
                raise UserError(
                    f"{tables[split].at(line)}: label {value!r} is not a number; write one, or "
                    "set `problem_type: single_label_classification`"
                )
            numbers.append(number)
        frame["label"] = numbers

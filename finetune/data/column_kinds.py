"""Tells the kind of a table's column: texts, classes, numbers, ids, dates, chats, images.

A kind follows from the values, and from the name where the values alone do not decide.
"""

import math
import re
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas

from finetune.data import chats, image_files

TEXTS, NAMES, CLASSES, NUMBERS, SETS = "texts", "names", "classes", "numbers", "label sets"
IDS, DATES, LINKS, CHATS, IMAGES = "ids", "dates", "links", "chats", "images"
EMPTY, CONSTANT, OTHER = "empty", "constant", "other"

# Rows that are looked at.
SAMPLE = 20_000
# Numbers with up to so many values are classes.
MOST_CLASSES = 20
# What nearly all cells have to be, so that one odd cell does not change a column's kind.
NEARLY_ALL = 0.95
# Words in a name that do not say what the column holds.
FILLERS = {"text", "name", "id", "code", "index", "idx", "str", "column"}
ID_NAMES = {"id", "uuid", "guid", "index", "idx", "key", "row", "hash", "unnamed"}
DATE_NAMES = {"date", "time", "timestamp", "datetime", "created", "updated", "year"}
DATE = re.compile(
    r"\d{4}-\d{1,2}(-\d{1,2})?([T ].*)?|\d{4}/\d{1,2}/\d{1,2}.*|\d{1,2}[./-]\d{1,2}[./-]\d{2,4}.*"
    r"|[A-Z][a-z]{2,8}\.? \d{1,2},? \d{4}.*|\d{1,2}\.? [A-Z][a-z]{2,8}\.? \d{4}.*"
    r"|[A-Z][a-z]{2} [A-Z][a-z]{2} \d{1,2} .*\d{4}"
)
LINK = re.compile(r"(https?://|www\.)\S+")
SEPARATORS = ";|,"


@dataclass(eq=False)
class Column:
    """One column: its name, its values without missing ones, and what they are.

    Attributes:
        values: a Series of all rows, without missing ones.
        kind: one of the words above.
        number: whether all values are numbers.
        length: mean number of characters.
        separator: for sets of labels written as text, what stands between them.
    """

    name: str
    values: Any
    kind: str
    number: bool = False
    length: float = 0.0
    separator: str = ""

    @cached_property
    def head(self) -> str:
        """The word of the name that says what it holds: ``rating`` for ``star_ratings``."""
        return head(self.name)

    @property
    def is_text(self) -> bool:
        return self.kind in {TEXTS, NAMES}

    @property
    def is_label(self) -> bool:
        return self.kind in {CLASSES, SETS, NUMBERS}

    @cached_property
    def distinct(self) -> int:
        """The number of different values."""
        return self.values.map(str).nunique()

    @property
    def problem_type(self) -> str:
        """How labels in this column are learned."""
        if self.kind == SETS:
            return "multi_label_classification"
        return "regression" if self.kind == NUMBERS else "single_label_classification"

    @property
    def example(self) -> str:
        """The first value, in quotes, on one line."""
        value = self.values.iloc[0] if len(self.values) else ""
        if self.kind == CHATS:
            spoken = (m.get("content") or m.get("value") for m in chats.messages_of(value))
            value = next((text for text in spoken if isinstance(text, str)), "")
        if not isinstance(value, str):
            return "the bytes of image files" if self.kind == IMAGES else str(value)
        return f'"{" ".join(value[:200].split())}"'

    def counts(self, problem_type: str, separator: str) -> str:
        """Describes the labels: classes with their counts, or the range of numbers."""
        if problem_type == "regression":
            numbers: Any = pandas.to_numeric(self.values.map(str), errors="coerce")
            return f"{numbers.min():g} to {numbers.max():g}, mean {numbers.mean():.3g}"
        names = self.values.map(str)
        if problem_type == "multi_label_classification":
            parts = [p for v in self.values for p in split(v, separator)]
            names = pandas.Series(parts, dtype=object)
        counts = names.value_counts()
        # Ties in the order of the names, so that the same rows in any order print the same.
        ordered = sorted(counts.items(), key=lambda item: (-int(item[1]), str(item[0])))
        if all(_number(str(name)) is not None for name in counts.index):
            ordered.sort(key=lambda item: float(str(item[0])))
        return ", ".join(f"{name} ({count:,})" for name, count in ordered)

    def renames(self, other: "Column") -> bool:
        """Whether each class of one column goes with exactly one class of the other."""
        if self.kind != CLASSES or other.kind != CLASSES or self.distinct != other.distinct:
            return False
        both = pandas.DataFrame({"a": self.values.map(str), "b": other.values.map(str)})
        return len(both.drop_duplicates()) == self.distinct


def head(name: str) -> str:
    """Returns the word of a name that says what it holds, in the singular and lower case."""
    words = _words(name)
    while len(words) > 1 and (words[-1] in FILLERS or words[-1].isdecimal()):
        words.pop()
    if words[:1] == ["is"]:
        return "label"
    word = words[-1] if words else ""
    if word.endswith("ies"):
        return f"{word[:-3]}y"
    if word.endswith("sses"):
        return word[:-2]
    plural = word.endswith("s") and not word.endswith(("ss", "is", "us")) and len(word) > 1
    return word[:-1] if plural else word


def _words(name: str) -> list[str]:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Za-z])(?=\d)", " ", name)
    return re.findall(r"\w+", spaced.replace("_", " ").lower())


def split(value: Any, separator: str) -> list[str]:
    """Returns the labels of a cell."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(separator) if part.strip()]
    return [str(part) for part in value] if isinstance(value, list | tuple) else [str(value)]


def of(name: str, values: Any) -> Column:
    """Tells what a column is.

    Args:
        values: a Series of all rows, as they were read; text cells of CSV files are str.
    """
    present = values[[not _is_missing(v) for v in values]]
    # At random: evenly spaced rows would miss classes that take turns.
    chosen = present if len(present) <= SAMPLE else present.sample(SAMPLE, random_state=0)
    sample = chosen.tolist()
    if not sample:
        return Column(name, present, EMPTY)
    kind = _structured(sample)
    if kind:
        return Column(name, present, kind)
    cells = [str(v).strip() for v in sample]
    length = sum(map(len, cells)) / len(cells)
    number = all(_number(cell) is not None for cell in cells)
    kind, separator = _scalar(name, cells, number), ""
    if kind in {CLASSES, NAMES, TEXTS} and not number:
        separator = _separator(cells)
        kind = SETS if separator else kind
    return Column(name, present, kind, number, length, separator)


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def _number(cell: str) -> float | None:
    try:
        number = float(cell)
    except ValueError:
        return None
    # "1_000" is a number for Python only.
    return number if math.isfinite(number) and "_" not in cell else None


def _are_numbers(cells: list[str]) -> bool:
    return _share(cells, lambda cell: _number(cell) is not None) >= NEARLY_ALL


def _share(cells: list[Any], test: Any) -> float:
    return sum(bool(test(cell)) for cell in cells) / len(cells)


def _structured(cells: list[Any]) -> str | None:
    """Returns the kind of cells that are images, chats, lists or mappings; None for others."""
    if _share(cells, _is_image) >= NEARLY_ALL:
        return IMAGES
    if _share(cells, chats.is_chat) >= NEARLY_ALL:
        return CHATS
    if any(isinstance(cell, list | tuple) for cell in cells):
        parts = [p for cell in cells if isinstance(cell, list | tuple) for p in cell]
        return SETS if all(isinstance(p, str | int) for p in parts) else OTHER
    return OTHER if any(isinstance(cell, dict | bytes) for cell in cells) else None


def _is_image(cell: Any) -> bool:
    if isinstance(cell, dict):
        return bool(cell) and cell.keys() <= {"bytes", "path"}
    if isinstance(cell, bytes):
        return True
    is_path = isinstance(cell, str) and not LINK.fullmatch(cell)
    return is_path and Path(cell).suffix.lower() in image_files.SUFFIXES


def _scalar(name: str, cells: list[str], number: bool) -> str:
    """Returns the kind of cells that are texts, numbers or booleans."""
    distinct, count = len(set(cells)), len(cells)
    if distinct == 1 and count > 1:
        return CONSTANT
    words = _words(name)
    if _is_ids(words, cells, number, distinct):
        return IDS
    dated = words[-1:] and words[-1] in DATE_NAMES
    if _share(cells, DATE.fullmatch) >= NEARLY_ALL or (number and dated):
        return DATES
    if _share(cells, LINK.fullmatch) >= NEARLY_ALL:
        return LINKS
    repeats = 2 * distinct <= count
    if number:
        return CLASSES if distinct <= MOST_CLASSES and repeats else NUMBERS
    if not repeats and _are_numbers(cells):
        return NUMBERS
    mean = sum(len(cell.split()) for cell in cells) / count
    if mean >= 8:
        return TEXTS
    if repeats:
        return CLASSES
    # Languages without spaces have one long word in a text.
    return TEXTS if mean >= 3 or max(map(len, cells)) >= 60 else NAMES


def _is_ids(words: list[str], cells: list[str], number: bool, distinct: int) -> bool:
    """Whether cells number or name the rows, or name something else by its id."""
    count = len(cells)
    if not words or words[0] == "unnamed":
        return number
    labelled = head(" ".join(words)) in {"label", "class", "category", "target", "topic"}
    spaceless = not any(" " in cell for cell in cells)
    if words[-1] in ID_NAMES and spaceless and not labelled:
        return True
    if distinct < count or count < 3:
        return False
    if number:
        if not all(cell.isdecimal() for cell in cells):
            return False
        whole = [int(cell) for cell in cells]
        steps = {after - before for before, after in pairwise(whole)}
        lengths = {len(cell) for cell in cells}
        return (len(steps) == 1 and count >= 10) or (len(lengths) == 1 and min(lengths) >= 6)
    has_digits = _share(cells, lambda cell: re.search(r"\d", cell)) >= NEARLY_ALL
    return spaceless and has_digits and not _are_numbers(cells)


def _separator(cells: list[str]) -> str:
    """Returns what separates several labels in a cell; nothing if cells have one each.

    Several labels are few short parts that occur again in other combinations. A class name with a
    comma in it always has the same parts.
    """
    whole = set(cells)
    for separator in SEPARATORS:
        rows = [split(cell, separator) for cell in cells]
        parts = [part for row in rows for part in row]
        distinct = set(parts)
        several = sum(len(row) > 1 for row in rows) / len(rows)
        short = all(len(part.split()) <= 4 and len(part) <= 40 for part in distinct)
        if several >= 0.05 and short and distinct:
            again = len(parts) >= 3 * len(distinct)
            if again and len(distinct) <= len(whole) and not _keeps_together(rows):
                return separator
    return ""


def _keeps_together(rows: list[list[str]]) -> bool:
    """Whether no two different rows share a part, so that the separator is within class names."""
    owner: dict[str, tuple[str, ...]] = {}
    return all(owner.setdefault(part, tuple(row)) == tuple(row) for row in rows for part in row)

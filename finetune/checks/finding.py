"""What a check returns: findings, each with some of the rows that it is about."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import pandas

# Examples that a finding shows.
SHOWN = 3
# The columns of a row's texts.
PARTS = ("text", "text_pair", "source", "question", "context", "messages", "prompt", "completion")


class Severity(IntEnum):
    """How serious a finding is. The highest one is the exit status of the command."""

    NOTE = 0
    WARNING = 1
    ERROR = 2


@dataclass(frozen=True)
class Example:
    """A row that a finding is about.

    Attributes:
        row: the row's id, or its file and line.
        text: what the row has, or what is wrong with it.
        note: its label or what else is to be said of it.
        image: a path or the bytes of a file, for rows that are images.
    """

    row: str
    text: str
    note: str = ""
    image: str | bytes | None = None


@dataclass(frozen=True)
class Finding:
    """Something that the user should know about the data.

    Attributes:
        what: a phrase that follows the count: "training rows repeat an earlier one".
        count: how many rows it is about; None if it is about no rows in particular.
        advice: one sentence that says what to do.
        examples: at most ``SHOWN`` of the rows.
    """

    severity: Severity
    what: str
    count: int | None
    advice: str
    examples: Sequence[Example] = field(default=())


def some(examples: Iterable[Example]) -> list[Example]:
    """Returns the first ``SHOWN`` of some examples, without computing the others."""
    return [example for _, example in zip(range(SHOWN), examples, strict=False)]


def example(frame: pandas.DataFrame, at: int, note: str = "") -> Example:
    """Returns the row at a position of a corpus' frame as an example."""
    row: dict[str, Any] = frame.iloc[at].to_dict()
    if "digest" in row:
        path = row["image"] if isinstance(row["image"], str) else ""
        return Example(row["id"], path, note, row["image"])
    parts = [row[part] for part in PARTS if part in row]
    if "messages" in row:
        parts = [f"{turn['role']}: {turn['content']}" for turn in json.loads(row["messages"])]
    return Example(row["id"], " | ".join(parts), note)


def joined(frame: pandas.DataFrame) -> list[str]:
    """Returns the texts of each row as one text."""
    columns = [frame[part] for part in PARTS if part in frame]
    return ["\n".join(cells) for cells in zip(*columns, strict=True)]

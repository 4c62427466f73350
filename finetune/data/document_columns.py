"""Finds out what the rows of a table are, as documents for a language model.

- A chat: the column ``messages``, or ``conversations`` (ShareGPT), with the column ``tools``.
- A prompt with its completion, as texts or as messages. ``instruction``, ``input`` and ``output``
  (Alpaca) are one: the input is appended to the instruction.
- A text.

A column that the recipe names comes before one that is found by its usual name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from statistics import median
from typing import Any

from finetune.data import chats, readers
from finetune.errors import UserError
from finetune.recipe import Data

# Rows that are looked at, to see what a column holds.
SAMPLE = 100
# The usual names of columns besides the recipe's defaults.
SHAREGPT = ("conversations", "conversation")
INSTRUCTION, INPUT, OUTPUT = "instruction", "input", "output"
TOOLS = "tools"
DEFAULTS = {f.name: f.default for f in fields(Data) if f.default is not MISSING}
# A column of texts with so many words is one that somebody might want to be learned.
WORDS = 3


@dataclass(frozen=True)
class Layout:
    """Which columns make a document.

    ``parts`` has one or two names of columns for each part of a document: ``messages``, ``prompt``
    and ``completion``, or ``text``. ``notes`` are phrases for the report.
    """

    parts: dict[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        return [name for names in self.parts.values() for name in names]

    def name(self, part: str) -> str:
        """Returns the columns of a part, for messages."""
        return " and ".join(self.parts[part])

    def documents(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Returns the parts of some rows, given their columns."""
        return {
            part: [
                _cell(part, names, cells) for cells in zip(*(rows[n] for n in names), strict=True)
            ]
            for part, names in self.parts.items()
        }


def find(source: str, sample: Mapping[str, Sequence[Any]], data: Data) -> Layout:
    """Returns the layout of a table.

    Args:
        source: names the table in messages.
        sample: its columns, of some rows.

    Raises:
        UserError: there is no document, a column that the recipe names is missing, or the rows are
            preference data.
    """
    parts, notes = _parts(source, sample, data)
    used = {name for names in parts.values() for name in names}
    notes += [
        f"column {name} looks like content and is not used"
        for name, cells in sample.items()
        if name not in used and _is_content(cells[:SAMPLE])
    ]
    return Layout(parts, tuple(notes))


def _parts(
    source: str, sample: Mapping[str, Sequence[Any]], data: Data
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    def given(key: str) -> bool:
        return getattr(data, key) not in {DEFAULTS[key], ""}

    def has(*keys: str) -> bool:
        return all(getattr(data, key) in sample for key in keys)

    for key in ("messages", "prompt", "completion", "text"):
        if given(key) and not has(key):
            raise readers.unknown_name(source, "column", getattr(data, key), list(sample), key)
    pair = given("prompt") or given("completion")
    if given("messages") or (has("messages") and not pair and not given("text")):
        return _chat(data.messages, sample)
    if pair and not has("prompt", "completion"):
        key = "completion" if has("prompt") else "prompt"
        raise readers.unknown_name(source, "column", getattr(data, key), list(sample), key)
    if pair:
        return _pair(data.prompt, data.completion, sample)
    if given("text"):
        return {"text": (data.text,)}, []
    other = next((n for n in SHAREGPT if n in sample), None)
    if other and data.messages:
        parts, notes = _chat(other, sample)
        return parts, [f"column {other} read as chats", *notes]
    if has("prompt", "completion"):
        return _pair(data.prompt, data.completion, sample)
    if has("text"):
        return {"text": (data.text,)}, []
    if {INSTRUCTION, OUTPUT} <= set(sample):
        parts, notes = _pair(INSTRUCTION, OUTPUT, sample)
        return parts, [f"columns {INSTRUCTION} and {OUTPUT} read as prompt and completion", *notes]
    if {"chosen", "rejected"} <= set(sample):
        key = "completion" if has("prompt") else "messages"
        raise UserError(
            f"{source}: this is preference data; here only `chosen` can be learned: --{key} chosen"
        )
    raise readers.unknown_name(source, "column", data.text, list(sample), "text")


def _chat(
    name: str, sample: Mapping[str, Sequence[Any]]
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    if TOOLS in sample:
        return {"messages": (name, TOOLS)}, []
    return {"messages": (name,)}, []


def _pair(
    prompt: str, completion: str, sample: Mapping[str, Sequence[Any]]
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    if any(chats.is_chat(c) for name in (prompt, completion) for c in sample[name][:SAMPLE]):
        notes = [f"{prompt} with {completion} read as a chat, of which {completion} is learned"]
        return {"messages": (prompt, completion)}, notes
    if prompt == INSTRUCTION and INPUT in sample and completion != INPUT:
        notes = [f"column {INPUT} appended to {INSTRUCTION}"]
        return {"prompt": (prompt, INPUT), "completion": (completion,)}, notes
    return {"prompt": (prompt,), "completion": (completion,)}, []


def _cell(part: str, names: tuple[str, ...], cells: tuple[Any, ...]) -> Any:
    """Returns a part of a row, given the cells of its columns."""
    if len(names) == 1:
        return cells[0]
    first, second = cells
    if part == "prompt":
        return first if readers.is_missing(second) else f"{first}\n\n{second}"
    if names[1] != TOOLS:
        return (
            None
            if readers.is_missing(first) or readers.is_missing(second)
            else chats.joined(first, second)
        )
    return first if readers.is_missing(second) else {"messages": first, "tools": second}


def _is_content(cells: Sequence[Any]) -> bool:
    held = [cell for cell in cells if not readers.is_missing(cell)]
    if any(isinstance(cell, list | dict) and cell for cell in held):
        return True
    texts = [len(cell.split()) for cell in held if isinstance(cell, str)]
    return bool(texts) and median(texts) >= WORDS

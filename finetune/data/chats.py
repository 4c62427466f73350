"""Reads, checks and serializes chats, which tables have as lists of messages or as JSON text."""

import json
from typing import Any


def read(cell: Any) -> Any:
    """Returns the messages of a cell: a list, or in CSV its JSON text; None if it is neither."""
    if not isinstance(cell, str):
        return [dict(message) if isinstance(message, dict) else message for message in cell]
    try:
        return json.loads(cell)
    except ValueError:
        return None


def fault(cell: Any) -> str | None:
    """Returns what is wrong with a cell, as words to put after the column's name, or None."""
    try:
        messages = read(cell)
    except TypeError:
        messages = None
    if not isinstance(messages, list) or not messages:
        return "is not a list of messages"
    for message in messages:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            return 'has a message that is not {"role": …, "content": …}'
        if not all(isinstance(message[key], str) for key in ("role", "content")):
            return "has a role or content that is not a text"
    if not any(message["role"] == "assistant" for message in messages):
        return "has no message of the assistant, so there is nothing to learn"
    return None


def as_text(cell: Any) -> str:
    """Returns the messages of a cell as JSON, the same for equal chats."""
    chosen = [{key: message[key] for key in ("role", "content")} for message in read(cell)]
    return json.dumps(chosen, ensure_ascii=False)

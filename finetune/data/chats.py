"""Chats as tables hold them: checked, and written as one text."""

import json
from typing import Any


def read(cell: Any) -> Any:
    """The messages of a cell: a list, or the JSON text of one as CSV holds it."""
    if not isinstance(cell, str):
        return [dict(message) if isinstance(message, dict) else message for message in cell]
    try:
        return json.loads(cell)
    except ValueError:
        return None


def fault(cell: Any) -> str | None:
    """What is wrong with a cell of messages, in words that follow the column's name."""
    try:
        messages = read(cell)
    except TypeError:
        messages = None
    if not isinstance(messages, list) or not messages:
        return "is not a list of messages"
    for message in messages:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            return 'holds a message that is not {"role": …, "content": …}'
        if not all(isinstance(message[key], str) for key in ("role", "content")):
            return "holds a role or content that is not a text"
    if not any(message["role"] == "assistant" for message in messages):
        return "holds no message of the assistant, so there is nothing to learn"
    return None


def as_text(cell: Any) -> str:
    """The messages of a cell as JSON, alike for alike chats."""
    chosen = [{key: message[key] for key in ("role", "content")} for message in read(cell)]
    return json.dumps(chosen, ensure_ascii=False)

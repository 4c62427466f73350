"""Reads chats in the forms that public data sets have, and serializes them in one form.

- A chat is a list of messages ``{"role": …, "content": …}``, in a table also as its JSON text. With
  tools it is ``{"messages": […], "tools": […]}``.
- ``from`` and ``value`` are read as role and content, other names of roles as those that chat
  templates know, content in parts as one text. ``Chat.changes`` says so.
"""

import ast
import json
import re
from dataclasses import dataclass, field
from typing import Any

# Names of roles in public data sets, and those that chat templates know.
ROLES = {
    **dict.fromkeys(["human"], "user"),
    **dict.fromkeys(["gpt", "model", "bot", "chatgpt", "ai"], "assistant"),
    "developer": "system",
    **dict.fromkeys(["function", "observation"], "tool"),
}
KNOWN = {"system", "user", "assistant", "tool"}
# What a template may read of a message beside role and content.
REASONING = ("reasoning_content", "reasoning", "thinking")
MORE = ("tool_calls", "tool_call_id", *REASONING, "name")
# What a message may have that has no place in a conversation.
HARMLESS = {"role", "content", "from", "value", "weight", "id", *MORE}
TEXT_PARTS = {"text", "input_text", "output_text"}
# The beginning of a list of objects, as text.
LIST = re.compile(r"\s*\[\s*\{")


class Unusable(ValueError):  # noqa: N818 - named as what is wrong, like image_files.Unusable
    """What is wrong with a chat, as words to put after the column's name."""


@dataclass
class Chat:
    """Messages in the form of chat templates, the tools they may call, and what was ``changes``.

    A message of weight 0 is not learned.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)

    def as_text(self) -> str:
        """Returns the chat as JSON, the same for equal chats."""
        whole = {"messages": self.messages, "tools": self.tools} if self.tools else self.messages
        return json.dumps(whole, ensure_ascii=False)


def read(cell: Any) -> Chat:
    """Reads the chat of a cell.

    Raises:
        Unusable: it is no chat, or none that can be learned from.
    """
    found = messages_of(cell)
    tools: Any = []
    if isinstance(found, dict) and "messages" in found:
        tools, found = messages_of(found.get("tools") or []), messages_of(found["messages"])
    if not isinstance(found, list) or not found:
        raise Unusable("is not a list of messages")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise Unusable("has tools that are not a list of JSON objects")
    chat = Chat([], [_without_none(tool) for tool in tools])
    for message in found:
        chat.messages.append(_message(message, chat.changes))
    chat.changes = list(dict.fromkeys(chat.changes))
    answers = [m for m in chat.messages if m["role"] == "assistant"]
    if not answers:
        raise Unusable("has no message of the assistant, so there is nothing to learn")
    if all(m.get("weight") == 0 for m in answers):
        raise Unusable("has weight 0 for each answer, so there is nothing to learn")
    return chat


def messages_of(cell: Any) -> Any:
    """Returns what a cell holds: if it is the text of a list, as in CSV, that list."""
    if not isinstance(cell, str):
        return cell
    for parse in (json.loads, ast.literal_eval):
        # pandas writes lists into CSV in Python's notation.
        try:
            return parse(cell)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def is_chat(cell: Any) -> bool:
    """Returns whether a cell holds a list of messages, or the text of one, whatever they say."""
    if isinstance(cell, str) and not LIST.match(cell):
        return False
    found = messages_of(cell)
    return (
        isinstance(found, list)
        and bool(found)
        and all(isinstance(m, dict) and {"role", "from"} & m.keys() for m in found)
    )


def joined(prompt: Any, completion: Any) -> Any:
    """Returns the messages of a prompt with its completion; only the completion's are learned.

    Each is a list of messages or a text, which is the user's or the assistant's. A completion that
    starts with a message of another role than the assistant's is taken for the whole chat.
    """
    if is_chat(completion):
        answer = messages_of(completion)
        first = answer[0].get("role") or answer[0].get("from")
        if ROLES.get(str(first).lower(), str(first).lower()) in {"system", "user"}:
            return answer
    else:
        answer = [{"role": "assistant", "content": completion}]
    asked = messages_of(prompt) if is_chat(prompt) else [{"role": "user", "content": prompt}]
    return [*({**message, "weight": 0} for message in asked), *answer]


def _message(message: Any, changes: list[str]) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise Unusable('has a message that is not {"role": …, "content": …}')
    # In a column of Arrow, each message has the keys of all, without a value.
    given = {key: value for key, value in message.items() if value is not None}
    if "role" not in given and "from" in given:
        given["role"] = given.pop("from")
        changes.append("from read as role")
    if "content" not in given and "value" in given:
        given["content"] = given.pop("value")
    calls = _calls(given.get("tool_calls"))
    if "role" not in given or not ("content" in given or "content" in message or calls):
        raise Unusable('has a message that is not {"role": …, "content": …}')
    if given.get("function_call"):
        raise Unusable("has a function_call; write it as tool_calls")
    role, content = given.get("role"), given.get("content", "" if calls else None)
    if isinstance(content, list):
        content = _text_of(content)
        changes.append("content in parts joined")
    if not isinstance(role, str) or not isinstance(content, str):
        raise Unusable("has a role or content that is not a text")
    plain = role.strip().lower()
    plain = ROLES.get(plain, plain)
    if plain != role and plain in KNOWN:
        changes.append(f"role {role} read as {plain}")
        role = plain
    elif plain not in KNOWN:
        changes.append(f"role {role} is not one that chat templates know")
    made: dict[str, Any] = {"role": role, "content": content}
    # The name of a user is no part of what templates write, that of a tool is.
    more = MORE if role == "tool" else MORE[:-1]
    made |= {key: given[key] for key in more if isinstance(given.get(key), str) and given[key]}
    if calls:
        made["tool_calls"] = calls
    weight = given.get("weight", 1)
    if weight not in (0, 1):
        raise Unusable(f"has the weight {weight!r}; 0 and 1 are read")
    if role == "assistant" and weight == 0:
        made["weight"] = 0
    changes += [f"{key} of messages not used" for key in given if key not in HARMLESS]
    return made


def _text_of(parts: list[Any]) -> str:
    texts = []
    for part in parts:
        text = part if isinstance(part, str) else None
        if isinstance(part, dict):
            kind = part.get("type", "text")
            if kind not in TEXT_PARTS:
                raise Unusable(f"has content of type {kind}; only text is learned")
            text = part.get("text")
        if not isinstance(text, str):
            raise Unusable("has a part of content that is not a text")
        texts.append(text)
    return "".join(texts)


def _calls(given: Any) -> list[Any]:
    """Returns tool calls with their arguments as objects, which templates write as JSON."""
    if not given:
        return []
    if not isinstance(given, list) or not all(isinstance(call, dict) for call in given):
        raise Unusable("has tool_calls that are not a list of JSON objects")
    calls = [_without_none(call) for call in given]
    for call in calls:
        inner = call.get("function", call)
        if isinstance(inner, dict) and isinstance(inner.get("arguments"), str):
            try:
                inner["arguments"] = json.loads(inner["arguments"])
            except ValueError:
                raise Unusable("has a tool call whose arguments are not JSON") from None
    return calls


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list) else value

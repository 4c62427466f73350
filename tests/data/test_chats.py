"""Chats, prompts and texts as public data sets write them, from memory and from disk."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest

from finetune.data import chats, corpus, streaming
from finetune.data.corpus import Corpus
from finetune.errors import UserError
from finetune.recipe import Data

USER, ANSWER = {"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
Load = Callable[..., Corpus]


@pytest.fixture(params=[corpus.load, streaming.load], ids=["memory", "disk"])
def load(request: pytest.FixtureRequest, workdir: Path) -> Load:
    """Loads rows as documents; each row is made different by a number in its first text."""

    def from_rows(row: dict[str, Any], count: int = 40, **options: Any) -> Corpus:
        lines = [json.dumps(row).replace("hello", f"hello {i}") for i in range(count)]
        Path("t.jsonl").write_text("\n".join(lines), encoding="utf-8")
        data = Data(train="t.jsonl", holdout=2, validation_size=0, **options)
        return request.param(data, corpus.DOCUMENTS, labelled=False)

    return from_rows


def first(found: Corpus) -> dict[str, Any]:
    """The cells of a test row, chats as they were read."""
    row = dict(found.test.drop(columns="id").iloc[0])
    if "messages" in row:
        row["messages"] = json.loads(row["messages"])
    return {
        key: json.loads(re.sub(r"hello \d+", "hello", json.dumps(value)))
        for key, value in row.items()
    }


# --- columns ---------------------------------------------------------------------------------


def test_sharegpt_is_read_and_said(load: Load) -> None:
    turns = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]
    found = load({"conversations": turns})
    assert first(found) == {"messages": [USER, ANSWER]}
    assert found.report["fixed"] == {
        "column conversations read as chats": 40,
        "from read as role": 40,
        "role human read as user": 40,
        "role gpt read as assistant": 40,
    }
    # Other names under the same column.
    assert first(load({"conversations": [USER, ANSWER]})) == {"messages": [USER, ANSWER]}
    assert first(load({"c": [USER, ANSWER]}, messages="c")) == {"messages": [USER, ANSWER]}


def test_the_input_of_alpaca_is_part_of_the_prompt(load: Load) -> None:
    row = {"instruction": "hello", "input": "a text", "output": "an answer"}
    whole = {"prompt": "hello\n\na text", "completion": "an answer"}
    named = load(row, prompt="instruction", completion="output")
    assert first(named) == whole
    assert named.report["fixed"] == {"column input appended to instruction": 40}
    found = load(row)
    assert first(found) == whole
    assert "columns instruction and output read as prompt and completion" in found.report["fixed"]
    assert first(load(row | {"input": ""})) == whole | {"prompt": "hello"}


def test_a_column_of_content_that_is_not_used_is_named(load: Load) -> None:
    row = {"prompt": "hello", "completion": "c", "context": "a text of many words", "source": "web"}
    assert load(row).report["fixed"] == {"column context looks like content and is not used": 40}


def test_a_prompt_may_be_messages_of_which_only_the_completion_is_learned(load: Load) -> None:
    asked = [USER, {"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]
    learned = [USER, asked[1] | {"weight": 0}, asked[2], ANSWER]
    found = load({"prompt": asked, "completion": [ANSWER]})
    assert first(found) == {"messages": learned}
    assert found.report["fixed"] == {
        "prompt with completion read as a chat, of which completion is learned": 40
    }
    assert first(load({"prompt": asked, "completion": "hi"})) == {"messages": learned}


def test_preference_data_says_what_can_be_learned(load: Load) -> None:
    row = {"prompt": "hello", "chosen": "hi", "rejected": "no"}
    with pytest.raises(
        UserError, match=r"preference data; here only `chosen` .*--completion chosen"
    ):
        load(row)
    assert first(load(row, completion="chosen")) == {"prompt": "hello", "completion": "hi"}
    whole = {"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}
    with pytest.raises(UserError, match="--messages chosen"):
        load(whole)
    assert first(load(whole, messages="chosen")) == {"messages": [USER, ANSWER]}
    # Some repeat the prompt in the chosen chat.
    assert first(load({"prompt": "hello"} | whole, completion="chosen")) == {
        "messages": [USER, ANSWER]
    }


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ([{"from": "human", "value": "hello"}], "text is a list of messages, .*--messages text"),
        ('[{"from": "human", "value": "hello"}]', "text is a list of messages"),
        ("[{'from': 'human', 'value': 'hello'}]", "text is a list of messages"),
        (["hello", "you"], "text is a list, not a text"),
        ({"en": "hello"}, "text is an object, not a text"),
    ],
)
def test_lists_are_no_texts(load: Load, cell: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load({"text": cell})


@pytest.mark.parametrize("key", ["messages", "prompt", "completion", "text"])
def test_a_column_that_is_named_has_to_exist(load: Load, key: str) -> None:
    row = {"messages": [USER, ANSWER], "prompt": "p", "completion": "c", "text": "t"}
    with pytest.raises(UserError, match=f"no column 'other'.*set `{key}:`"):
        load(row, **{key: "other"})
    # And is what is read.
    assert list(first(load({"body": "hello", **row}, text="body"))) == ["text"]


def test_tools_are_part_of_a_chat(load: Load) -> None:
    tool = {"type": "function", "function": {"name": "weather"}}
    for tools in ([tool], json.dumps([tool])):
        found = first(load({"messages": [USER, ANSWER], "tools": tools}))
        assert found == {"messages": {"messages": [USER, ANSWER], "tools": [tool]}}
    assert first(load({"messages": [USER, ANSWER], "tools": None})) == {"messages": [USER, ANSWER]}


def test_chats_in_python_s_notation_in_csv_are_read(workdir: Path) -> None:
    rows = [[USER | {"content": f"it's {i}"}, ANSWER] for i in range(40)]
    pandas.DataFrame({"messages": rows}).to_csv("t.csv", index=False)
    for read in (corpus.load, streaming.load):
        found = read(Data(train="t.csv", holdout=2, validation_size=0), corpus.DOCUMENTS, False)
        assert json.loads(found.test["messages"].iloc[0])[1] == ANSWER


# --- messages --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "read", "changes"),
    [
        ({"role": "Assistant", "content": "hi"}, ANSWER, ["role Assistant read as assistant"]),
        ({"role": "model", "content": "hi"}, ANSWER, ["role model read as assistant"]),
        (
            {"role": "assistant", "content": [{"type": "text", "text": "h"}, {"text": "i"}]},
            ANSWER,
            ["content in parts joined"],
        ),
        ({"role": "assistant", "content": "hi", "weight": 1}, ANSWER, []),
        ({"role": "assistant", "content": "hi", "name": None, "mood": None}, ANSWER, []),
        (
            {"role": "assistant", "content": "hi", "audio": {}},
            ANSWER,
            ["audio of messages not used"],
        ),
        (
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            [],
        ),
        (
            {
                "role": "assistant",
                "tool_calls": [
                    {
                        "type": "function",
                        "index": None,
                        "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
                    }
                ],
            },
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            [],
        ),
        (
            {"role": "assistant", "content": "hi", "reasoning_content": "hm"},
            ANSWER | {"reasoning_content": "hm"},
            [],
        ),
    ],
)
def test_a_message_is_read(message: dict[str, Any], read: dict[str, Any], changes: Any) -> None:
    found = chats.read([USER, message])
    assert found.messages == [USER, read]
    assert found.changes == changes
    again = chats.read(found.as_text())
    assert (again.messages, again.as_text()) == (found.messages, found.as_text())


def test_roles_are_read() -> None:
    roles = {"developer": "system", "human": "user", "observation": "tool", "critic": "critic"}
    given = [{"role": role, "content": "x"} for role in roles]
    found = chats.read([*given, ANSWER])
    assert [m["role"] for m in found.messages] == [*roles.values(), "assistant"]
    assert found.changes[-1] == "role critic is not one that chat templates know"


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        (
            {"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "has content of type image_url; only text is learned",
        ),
        ({"role": "assistant", "content": "hi", "weight": 0}, "has weight 0 for each answer"),
        ({"role": "assistant", "content": "hi", "weight": 0.5}, "has the weight 0.5"),
        (
            {"role": "assistant", "content": "", "function_call": {"name": "f"}},
            "has a function_call",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"arguments": "{"}}]},
            "has a tool call whose arguments are not JSON",
        ),
    ],
)
def test_a_chat_that_cannot_be_learned_is_set_aside(
    workdir: Path, message: dict[str, Any], fault: str
) -> None:
    with pytest.raises(chats.Unusable, match=fault):
        chats.read([USER, message])
    rows = [{"messages": [USER | {"content": str(i)}, ANSWER]} for i in range(199)]
    lines = [json.dumps(row) for row in [*rows, {"messages": [USER, message]}]]
    Path("t.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = corpus.load(Data(train="t.jsonl"), corpus.DOCUMENTS, labelled=False)
    assert found.report["rejected"] == 1
    assert fault in found.rejected[0]["reason"]

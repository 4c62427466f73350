"""Questions in every form that they are written in, and rows that cannot be used."""

import json
from pathlib import Path
from typing import Any

import pandas
import pytest

from finetune.data import corpus, questions, readers, row_checks
from finetune.errors import UserError
from finetune.recipe import Data

CONTEXT = "Ada was born in London. London is large."
ADA = [{"text": "Ada", "answer_start": 0}]


def read(content: Any, name: str = "asked.jsonl", **data: Any) -> tuple[pandas.DataFrame, Any]:
    """The usable rows of a file, and its table."""
    if isinstance(content, list):
        content = "\n".join(json.dumps(row) for row in content)
    Path(name).write_text(content, encoding="utf-8")
    settings = Data(**{"max_rejected": 1000, **data})
    table = readers.read_table(name, settings)
    return row_checks.usable(table, "train", settings, corpus.QUESTIONS, True), table


def row(**changes: Any) -> dict[str, Any]:
    return {"question": "Who was born?", "context": CONTEXT, "answers": ADA, **changes}


@pytest.mark.parametrize(
    "answers",
    [
        ADA,
        {"text": ["Ada"], "answer_start": [0]},
        {"text": "Ada", "answer_start": 0},
        {"text": ["Ada"]},
        ["Ada"],
        "Ada",
        '{"text": ["Ada"], "answer_start": [0]}',
        [{"text": " Ada ", "answer_start": -1}],
    ],
)
def test_answers_are_read_in_every_form(answers: Any, workdir: Path) -> None:
    frame, table = read([row(answers=answers)])
    assert not table.rejected
    assert frame["label"].tolist() == [ADA]
    assert frame["id"].tolist() == ["train-1"]


def test_an_answer_and_its_start_may_have_columns_of_their_own(workdir: Path) -> None:
    text = f'id,question,context,answer,answer_start\nx,Where?,"{CONTEXT}",London,24\n'
    text += f'y,Who?,"{CONTEXT}",Ada,\nz,Why?,"{CONTEXT}",,\n'
    frame, table = read(text, "asked.csv")
    assert frame["id"].tolist() == ["x", "y", "z"]
    assert frame["label"].tolist() == [[{"text": "London", "answer_start": 24}], ADA, []]
    assert table.fixed[questions.FOUND] == 1
    other = text.replace("answer,", "reply,").replace("answer_start", "at")
    named, _ = read(other, "other.csv", answers="reply", answer_start="at")
    assert named["label"].tolist() == frame["label"].tolist()


@pytest.mark.parametrize("lines", [False, True])
def test_squad_is_read_question_by_question(lines: bool, workdir: Path) -> None:
    """Both versions, as one object or an article a line."""
    one = {"context": CONTEXT, "qas": [{"id": "a", "question": "Who?", "answers": ADA}]}
    two = {
        "context": "No answer here.",
        "qas": [
            {"id": "b", "question": "Why?", "answers": [], "is_impossible": True},
            {"id": "c", "question": "What?", "answers": [{"text": "here", "answer_start": 10}]},
        ],
    }
    articles = [{"title": "t", "paragraphs": [one]}, {"title": "u", "paragraphs": [two]}]
    whole = json.dumps({"version": "v2.0", "data": articles})
    frame, table = read(articles if lines else whole, "squad.jsonl" if lines else "squad.json")
    assert not table.rejected
    assert frame["id"].tolist() == ["a", "b", "c"]
    assert frame["context"].tolist() == [CONTEXT, "No answer here.", "No answer here."]
    assert [len(label) for label in frame["label"]] == [1, 0, 1]
    assert table.rows.index.tolist() == [1, 2, 3]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "not there": ({"answers": ["Paris"]}, "answer 'Paris' is not in the context"),
    "other case": ({"answers": ["ada"]}, "answer 'ada' is not in the context"),
    "twice": ({"answers": ["London"]}, "'London' is 2 times in the context: no answer_start"),
    "wrong start": (
        {"answers": {"text": ["London"], "answer_start": [3]}},
        "at answer_start 3 is not 'London', which is there 2 times",
    ),
    "no number": (
        {"answers": {"text": ["Ada"], "answer_start": ["first"]}},
        "answer_start 'first' is not a number",
    ),
    "blank answer": ({"answers": ["  "]}, "a blank answer; leave the answers empty"),
    "blank text": ({"answers": "  "}, "a blank answer"),
    "no text": ({"answers": [{"answer_start": 3}]}, "an answer is not a text"),
    "number": ({"answers": [3]}, "an answer is not a text"),
    "uneven": ({"answers": {"text": ["Ada"], "answer_start": [0, 1]}}, "1 answers, and 2 answer_s"),
    "empty question": ({"question": " "}, "empty question"),
    "no question": ({"question": None}, "empty question"),
    "empty context": ({"context": ""}, "empty context"),
    "list": ({"context": ["a", "b"]}, "the context is a list"),
    "impossible": ({"is_impossible": True}, "has an answer, and is_impossible is true"),
    "possible": ({"answers": [], "is_impossible": False}, "has no answer, and is_impossible is f"),
}


@pytest.mark.parametrize(("changes", "reason"), BAD.values(), ids=BAD)
def test_a_row_that_cannot_be_used_is_left_out(
    changes: dict[str, Any], reason: str, workdir: Path
) -> None:
    frame, table = read([row(), row(**changes), row(question="Who?")])
    assert frame["question"].tolist() == ["Who was born?", "Who?"]
    (rejected,) = table.rejected
    assert reason in rejected["reason"]
    assert (rejected["source"], rejected["line"]) == ("asked.jsonl", 2)
    with pytest.raises(UserError, match=r"asked.jsonl:1: .*; 1 of 1 rows cannot be used"):
        read([row(**changes)], max_rejected=0)


def test_what_is_no_question_in_nested_json_is_counted(workdir: Path) -> None:
    paragraphs = [{"qas": [{"question": "Who?", "answers": ADA}]}, {"context": CONTEXT, "qas": [3]}]
    good = {"context": CONTEXT, "qas": [{"question": "Who?", "answers": ADA}]}
    frame, table = read([{"paragraphs": [*paragraphs, good]}])
    assert len(frame) == 1
    assert [each["reason"] for each in table.rejected] == ["empty context", "empty question"]
    with pytest.raises(UserError, match="no paragraph has a question"):
        read([{"paragraphs": [{"context": CONTEXT}]}])


def test_a_wrong_start_with_one_possible_place_is_corrected(workdir: Path) -> None:
    frame, table = read([row(answers={"text": ["born"], "answer_start": [9]})])
    assert frame["label"].tolist() == [[{"text": "born", "answer_start": 8}]]
    assert table.fixed[questions.MENDED] == 1


def test_a_missing_column_is_named(workdir: Path) -> None:
    with pytest.raises(UserError, match=r"no column 'answers'; it has question, context, reply"):
        read([{"question": "Who?", "context": CONTEXT, "reply": "Ada"}])


def test_a_context_is_in_one_split_only(workdir: Path) -> None:
    rows = [
        row(question=f"Who is {i}?", context=f"{CONTEXT} {i // 4}", answers=["Ada"])
        for i in range(80)
    ]
    Path("asked.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data = corpus.load(Data(train="asked.jsonl"), corpus.QUESTIONS)
    sides = [set(frame["context"]) for frame in (data.train, data.validation, data.test)]
    assert [len(side) for side in sides] == [15, 1, 4]
    assert not sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2]
    again = corpus.load(Data(train="asked.jsonl"), corpus.QUESTIONS)
    assert again.fingerprint == data.fingerprint


def test_questions_about_one_text_are_divided_and_it_is_said(workdir: Path) -> None:
    rows = [row(question=f"Who is {i}?") for i in range(40)]
    Path("asked.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data = corpus.load(Data(train="asked.jsonl"), corpus.QUESTIONS)
    assert (len(data.train), len(data.validation), len(data.test)) == (29, 3, 8)
    notes = [n for n in data.report["notes"] if "two splits" in n]
    assert any("1 groups of them, the largest with 40 rows" in note for note in notes)

"""`finetune check` of questions: windows, what is not learned, splits that differ."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.checks.test_check import shown as printed
from tests.conftest import WORDS

NOT_OPINIONS = WORDS[6:]
RECIPE = """\
task: question-answering
model: {{checkpoint: "{checkpoint}", max_length: 16, stride: 4, max_answer_length: 4}}
data: {{train: train.jsonl, test: test.jsonl, validation_size: 0}}
"""


def row(number: int, context: str, answer: str | None, question: str = "the film was") -> dict:
    answers = {"text": [answer], "answer_start": [context.index(answer)]} if answer else None
    return {"question": f"{question} {number}", "context": context, "answers": answers}


def rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Questions about contexts that differ in most of their words."""
    out = []
    for number in range(first, first + count):
        words = [WORDS[number // 12**k % 12] for k in range(3)]
        out.append(row(number, " ".join([f"{number:04d}", *words]), f"{number:04d}"))
    return out


@pytest.fixture
def shown(workdir: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Writes the rows and returns what `finetune check` prints of them, on one line."""

    def of(train: list[dict], test: list[dict]) -> str:
        Path("asked.yaml").write_text(RECIPE.format(checkpoint=tiny_bert), encoding="utf-8")
        for name, given in (("train", train), ("test", test)):
            lines = "".join(json.dumps(each) + "\n" for each in given)
            Path(f"{name}.jsonl").write_text(lines, encoding="utf-8")
        _, out, _ = printed(capsys, "asked.yaml")
        return " ".join(out.split())

    return of


def test_what_training_does_not_learn_as_it_is(shown: Any) -> None:
    long = " ".join(["9001", *NOT_OPINIONS * 3])
    given = [
        *rows(40),
        row(9001, long, long),
        row(9002, f"9002 {' '.join(NOT_OPINIONS)}", f"9002 {' '.join(NOT_OPINIONS[:5])}"),
        row(9003, "9003 the film", "film", "the film was " * 6),
    ]
    out = shown(given, rows(20, 100))
    assert "43 train, 0 validation, 20 test" in out
    assert "answers 100.0 % of 43 questions have one, of 1 words typically" in out
    assert "training questions (2.3 %) have a context of several windows of max_length 16" in out
    assert "1 training questions cut to half of max_length" in out
    assert "1 training answers longer than a window, left out" in out
    assert "training answers above max_answer_length 4, which is never predicted" in out
    assert "windows" in out.partition("one epoch")[2][:30]


def test_rows_and_splits_that_do_not_fit_are_named(shown: Any) -> None:
    train = [*rows(40), row(7, "0007 the cast", None) | {"answers": ["no such words"]}]
    test = [*rows(20, 100), row(500, "0500 was poor", None)]
    out = shown(train, test)
    assert "rows cannot be used" in out
    assert "the answer 'no such words' is not in the context" in out
    assert "test questions have no answer, and all training questions have one" in out


def test_contexts_that_are_nearly_the_same_in_two_splits_are_found_once(shown: Any) -> None:
    text = "the plot was a mess and nobody in the cast seemed to know why the film was made at all"
    train = [*rows(40), *(row(i, f"{text} 0", "mess") for i in range(600, 605))]
    test = [*rows(20, 100), row(700, f"{text} again", "mess")]
    out = shown(train, test)
    assert "1 test rows are nearly the same as a training row" in out
    # Five questions about one context are no duplicates of each other.
    assert "training rows are nearly the same" not in out
    assert "different labels" not in out

"""Windows are those of the tokenizer, hold every short answer, and rank all of its spans."""

import itertools
import random
from pathlib import Path
from typing import Any

import numpy
import pytest
from transformers import AutoTokenizer

from finetune.data import answer_spans, context_windows
from finetune.recipe import Model
from tests.conftest import WORDS, make_writer


@pytest.fixture(scope="module")
def tokenizer(tiny_bert: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_bert)


def text(count: int, seed: int = 0) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


@pytest.mark.parametrize("length", [3, 12, 13, 40, 61])
@pytest.mark.parametrize("shared", [1, 5, 9])
def test_windows_are_those_of_the_tokenizer(tokenizer: Any, length: int, shared: int) -> None:
    model = Model(max_length=18, stride=shared)
    found = context_windows.encode(["the film"], [text(length)], tokenizer, model)
    expected = tokenizer(
        "the film",
        text(length),
        truncation="only_second",
        max_length=18,
        stride=shared,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    for name in ("input_ids", "token_type_ids", "attention_mask"):
        assert found[name] == expected[name]
    for window, places in enumerate(expected["offset_mapping"]):
        context = [s == 1 for s in expected.sequence_ids(window)]
        pairs = list(zip(found["starts"][window], found["ends"][window], strict=True))
        assert [p for p, inside in zip(pairs, context, strict=True) if inside] == [
            p for p, inside in zip(places, context, strict=True) if inside
        ]
        assert {p for p, inside in zip(pairs, context, strict=True) if not inside} == {(-1, -1)}


def test_a_long_question_is_cut_and_leaves_room(tokenizer: Any) -> None:
    model = Model(max_length=16)
    found = context_windows.encode([text(40)], [text(20, 1)], tokenizer, model)
    assert max(found["length"]) == 16
    assert all(found["cut"])
    room = sum(start >= 0 for start in found["starts"][0])
    assert room == context_windows.least_room(tokenizer, model) == 5


def test_every_answer_as_long_as_the_stride_is_whole_in_a_window(tokenizer: Any) -> None:
    model, context = Model(max_length=16, stride=4), text(50)
    made = context_windows.encode(["the film"], [context], tokenizer, model)
    sides = list(zip(made["starts"], made["ends"], made["null"], strict=True))
    starts = [0, *(i + 1 for i, c in enumerate(context) if c == " ")]
    ends = [*(i for i, c in enumerate(context) if c == " "), len(context)]
    for size in (1, 3, 4):
        for first in range(50 - size + 1):
            answer = (starts[first], ends[first + size - 1])
            found = [context_windows.target(*side, answer) for side in sides]
            whole = [(side, t) for side, t in zip(sides, found, strict=True) if t != [0, 0]]
            assert whole
            for (begins, finishes, _), (a, b) in whole:
                assert (begins[a], finishes[b]) == answer
    assert context_windows.target(*sides[0], None) == [0, 0]


def test_an_answer_inside_a_token_is_that_token(tokenizer: Any) -> None:
    made = context_windows.encode(["a"], ["the film was"], tokenizer, Model(max_length=16))
    target = context_windows.target(made["starts"][0], made["ends"][0], made["null"][0], (5, 7))
    assert target == [4, 4]


def test_a_tokenizer_without_special_tokens_makes_windows_too(tmp_path: Path) -> None:
    writer: Any = AutoTokenizer.from_pretrained(make_writer(tmp_path / "writer"))
    context = "It was Ada Lovelace."
    model = Model(max_length=14, stride=3)
    made = context_windows.encode(["Who?"], [context], writer, model)
    seen = {s for starts in made["starts"] for s in starts if s >= 0}
    assert seen == set(range(len(context)))
    assert set(made["null"]) == {0}


def test_candidates_are_the_best_of_all_spans() -> None:
    draw = numpy.random.default_rng(0)
    for count in (1, 4, 30):
        start, end = draw.normal(size=(2, count + 4))
        starts = numpy.array([-1, -1, *range(0, 10 * count, 10), -1, -1])
        ends = numpy.where(starts < 0, -1, starts + 9)
        for longest in (1, 3, 50):
            found = answer_spans.candidates(start, end, starts, ends, longest)
            every = [
                (start[a] + end[b], int(starts[a]), int(ends[b]))
                for a, b in itertools.product(range(2, count + 2), repeat=2)
                if a <= b < a + longest
            ]
            assert found == sorted(every, reverse=True)[: answer_spans.BEST]
    nothing = numpy.full(3, -1)
    assert answer_spans.candidates(start[:3], end[:3], nothing, nothing, 9) == []


def test_windows_are_ranked_together() -> None:
    first = ([(2.0, 0, 3), (1.0, 3, 9)], 5.0)
    second = ([(4.0, 4, 9), (3.0, 0, 3), (0.5, 3, 4)], 1.5)
    ranked = answer_spans.rank([first, second], "the film was")
    found = [(s.text, s.start, s.end, s.score) for s in ranked.spans]
    # Without its blank, (3, 9) is (4, 9); nothing is left of (3, 4).
    assert found == [("film", 4, 8, 4.0), ("the", 0, 3, 3.0)]
    assert ranked.null == 1.5

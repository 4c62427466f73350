"""Schemes of tags: which one a file has, what is broken in it, and the entities it marks."""

import random

import pytest

from finetune.data import tags

SENTENCE = ["O", "B-PER", "I-PER", "B-PER", "O", "B-LOC"]


@pytest.mark.parametrize(
    ("scheme", "written"),
    [
        (tags.IOB2, SENTENCE),
        (tags.IOB1, ["O", "I-PER", "I-PER", "B-PER", "O", "I-LOC"]),
        (tags.IOBES, ["O", "B-PER", "E-PER", "S-PER", "O", "S-LOC"]),
        (tags.IOBES, ["O", "B-PER", "L-PER", "U-PER", "O", "U-LOC"]),
    ],
)
def test_every_scheme_becomes_iob2(scheme: str, written: list[str]) -> None:
    read = [str(tags.parse(tag)) for tag in written]
    assert tags.scheme([read]) == scheme
    assert not tags.is_broken(read, scheme)
    assert tags.iob2(tags.entities(read), len(read)) == SENTENCE


@pytest.mark.parametrize("tag", ["PER", "NN", "b-PER", "B-", "B_PER", "", "X-PER", "B-PER\n"])
def test_tags_of_another_scheme_are_none(tag: str) -> None:
    assert tags.parse(tag) is None


def test_one_entity_that_begins_by_b_makes_it_iob2() -> None:
    assert tags.scheme([["I-PER", "O"], ["O", "B-LOC"]]) == tags.IOB2
    assert tags.is_broken(["I-PER", "O"], tags.IOB2)


@pytest.mark.parametrize(
    ("scheme", "broken"),
    [
        (tags.IOB2, ["O", "I-PER"]),
        (tags.IOB2, ["B-PER", "I-LOC"]),
        (tags.IOBES, ["B-PER", "O"]),
        (tags.IOBES, ["O", "I-PER", "E-PER"]),
        (tags.IOBES, ["B-PER", "E-LOC"]),
        (tags.IOBES, ["B-PER", "S-LOC"]),
        (tags.IOBES, ["S-PER", "I-PER"]),
        (tags.IOBES, ["B-PER"]),
    ],
)
def test_broken_sequences_are_found(scheme: str, broken: list[str]) -> None:
    assert tags.is_broken(broken, scheme)


def test_entities_are_those_of_seqeval() -> None:
    from seqeval.metrics.sequence_labeling import get_entities

    draw = random.Random(0)
    known = ["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in ("PER", "LOC", "a-b"))]
    for _ in range(1000):
        row = draw.choices(known, k=draw.randint(1, 12))
        expected = [(kind, first, last + 1) for kind, first, last in get_entities(row)]
        assert tags.entities(row) == expected
        # What is kept of them marks the same entities.
        assert tags.entities(tags.iob2(expected, len(row))) == expected

"""Queries with passages: every form of a row, what is rejected, and splits without leaks."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.data import corpus, retrieval
from finetune.data.corpus import Corpus
from finetune.errors import UserError
from finetune.recipe import Data

FEW = {"holdout": 2, "validation_size": 2}


def write(rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def filler(count: int = 12) -> list[dict[str, Any]]:
    return [{"query": f"q{i}", "passage": f"passage {i}"} for i in range(count)]


def load(rows: list[dict[str, Any]], **keys: Any) -> Corpus:
    return corpus.load(Data(train=write(rows), **(FEW | keys)), corpus.RETRIEVAL)


def labels(data: Corpus) -> dict[str, list[str]]:
    frames = (data.train, data.validation, data.test)
    return {q: row for f in frames for q, row in zip(f["query"], f["label"], strict=True)}


def test_rows_of_a_query_are_joined(workdir: Path) -> None:
    rows = [
        {"query": " a ", "passage": "one"},
        {"query": "a", "passage": '["two", "three"]'},
        {"query": "a", "passage": ["one"]},
        {"query": "b", "passage": "[not a list"},
    ]
    data = load([*rows, *filler()])
    assert labels(data)["a"] == ["one", "two", "three"]
    assert labels(data)["b"] == ["[not a list"]
    assert data.report["fixed"] == {retrieval.JOINED: 2, retrieval.REPEATED: 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"query": " ", "passage": "x"}, "empty query"),
        ({"query": "a", "passage": None}, "empty passage"),
        ({"query": "a", "passage": []}, "empty passage"),
        ({"query": "a", "passage": ["x", ""]}, "empty passage"),
        ({"query": "a", "passage": " a"}, "the passage is the query itself"),
        ({"query": ["a"], "passage": "x"}, "the query is a list"),
        ({"query": "a", "passage": {"text": "x"}}, "the passage is an object"),
        ({"query": "a", "passage": "x", "wrong": [["y"]]}, "the negative is a list"),
    ],
)
def test_a_row_that_cannot_be_used_is_set_aside_with_its_line(
    workdir: Path, row: dict[str, Any], reason: str
) -> None:
    rows = [{"wrong": None, **each} for each in [*filler(), row]]
    data = load(rows, negative="wrong")
    (found,) = data.rejected
    assert (found["source"], found["line"], found["reason"]) == ("rows.jsonl", 13, reason)
    assert len(labels(data)) == 12


def test_negatives_that_are_relevant_are_left_out(workdir: Path) -> None:
    rows = [{"query": "a", "passage": "one", "wrong": ["x", "two"]}] * 2
    rows += [{"query": "a", "passage": "two", "wrong": "y"}]
    data = load([*rows, *({**each, "wrong": ""} for each in filler())], negative="wrong")
    frames = (data.train, data.validation, data.test)
    cells = {q: n for f in frames for q, n in zip(f["query"], f["negatives"], strict=True)}
    assert json.loads(cells["a"]) == ["x", "y"]
    assert data.report["fixed"][retrieval.RELEVANT] == 1
    found = retrieval.candidates(frames, Data())
    assert len(found) == len(set(found)) == 12 + 4


def test_passages_may_be_ids_of_a_corpus(workdir: Path) -> None:
    passages = [{"id": i, "passage": f" text {i}"} for i in range(20)]
    write(passages, "corpus.jsonl")
    rows = [{"query": f"q{i}", "passage": i} for i in range(12)]
    rows += [{"query": "both", "passage": [13, 14]}, {"query": "none", "passage": "99"}]
    data = load(rows, corpus="corpus.jsonl")
    assert labels(data)["q3"] == ["text 3"]
    assert labels(data)["both"] == ["text 13", "text 14"]
    assert [row["reason"] for row in data.rejected] == ["the passage '99' is no id of the corpus"]
    # Passages that no query names are searched, too.
    frames = (data.train, data.validation, data.test)
    assert retrieval.candidates(frames, Data(corpus="corpus.jsonl")) == [
        f"text {i}" for i in range(20)
    ]


@pytest.mark.parametrize(
    ("passages", "message"),
    [
        ([{"id": 1, "passage": "a"}, {"id": "1", "passage": "b"}], r"corpus.jsonl:2: the id '1'"),
        ([{"id": 1, "passage": "a"}, {"id": 2, "passage": " "}], r"corpus.jsonl:2: the passage is"),
        ([{"id": 1, "text": "a"}], r"no column 'passage'; it has id, text"),
    ],
)
def test_a_corpus_that_cannot_be_used_is_an_error(
    workdir: Path, passages: list[dict[str, Any]], message: str
) -> None:
    write(passages, "corpus.jsonl")
    with pytest.raises(UserError, match=message):
        load(filler(), corpus="corpus.jsonl")


def test_every_passage_of_a_corpus_counts_in_the_fingerprint(workdir: Path) -> None:
    rows = [{"query": f"q{i}", "passage": f"p{i}"} for i in range(12)]
    passages = [{"id": f"p{i}", "passage": f"text {i}"} for i in range(14)]

    def fingerprint() -> str:
        return load(rows, corpus=write(passages, "corpus.jsonl")).fingerprint

    before = fingerprint()
    assert fingerprint() == before
    # No row names it, but a search may find it.
    passages[13]["passage"] = "another text"
    changed = fingerprint()
    assert changed != before
    del passages[13]
    assert fingerprint() not in {before, changed}


def test_queries_that_share_a_passage_stay_in_one_split(workdir: Path) -> None:
    # Chains of three: q0 and q1 share a passage, q1 and q2 share another.
    rows = [
        {"query": f"q{3 * i + j}", "passage": [f"p{i}-{k}" for k in (j, j + 1)]}
        for i in range(30)
        for j in range(3)
    ]
    data = load(rows, holdout=20, validation_size=10)
    splits = [data.train, data.validation, data.test]
    assert [len(split) for split in splits] == [63, 9, 18]
    groups = [{p.split("-")[0] for row in split["label"] for p in row} for split in splits]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 30
    assert data.report["test_texts_in_train"] == 0


@pytest.mark.parametrize(
    "row", [{"query": "q1", "passage": "new"}, {"query": "n", "passage": "passage 1"}]
)
def test_a_query_or_passage_of_test_in_train_is_an_error(
    workdir: Path, row: dict[str, str]
) -> None:
    write([row, {"query": "other", "passage": "another"}], "test.jsonl")
    with pytest.raises(UserError, match="1 of 2 test rows are also in train, the first is test-1"):
        load(filler(), test="test.jsonl")
    data = load(filler(), test="test.jsonl", allow_overlap=True, validation_size=0)
    assert data.report["overlapping_rows"] == ["test-1"]


def test_ids_that_are_unique_are_kept(workdir: Path) -> None:
    rows = [{"id": f"n{i}", **row} for i, row in enumerate(filler())]
    assert sorted(load(rows).train["id"])[0].startswith("n")
    rows[1]["id"] = "n0"
    data = load(rows)
    assert sorted(data.train["id"])[0].startswith("train-")
    assert "the ids of queries are not unique; rows are named by their line" in data.report["notes"]

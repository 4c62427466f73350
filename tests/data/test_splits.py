"""The split policy, by the same cases for rows in memory and rows on disk."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from datasets import Dataset, DatasetDict
from sklearn.model_selection import train_test_split

from finetune.data import corpus, readers, sources, splits, streaming
from finetune.data.corpus import Corpus
from finetune.errors import UserError
from finetune.recipe import Data

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Load = Callable[..., Corpus]


@pytest.fixture(params=["memory", "disk"])
def load(request: pytest.FixtureRequest, workdir: Path) -> Load:
    """Loads rows without labels in memory or on disk, in an empty working directory."""
    if request.param == "memory":
        return lambda **keys: corpus.load(Data(**keys), labelled=False)
    return lambda **keys: streaming.load(Data(**keys))


def table(name: str, texts: list[str]) -> str:
    Path(name).parent.mkdir(exist_ok=True)
    rows = [json.dumps({"text": text}) + "\n" for text in texts]
    Path(name).write_text("".join(rows), encoding="utf-8")
    return name


def numbered(kind: str, count: int) -> list[str]:
    return [f"{kind} {i}" for i in range(count)]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's dataset ``a/b``, with its own test split."""
    splits = {
        name: Dataset.from_dict({"text": numbered(name, count)})
        for name, count in (("train", 60), ("test", 20), ("extra", 10))
    }
    monkeypatch.setattr(sources, "snapshot", lambda *_: Path(COMMIT))
    monkeypatch.setattr(readers, "from_snapshot", lambda *_: DatasetDict(splits))


def texts(rows: Any) -> list[str]:
    return list(rows["text"])


def sizes(found: Corpus) -> tuple[int, int, int]:
    return len(found.train), len(found.validation), len(found.test)


def refused(load: Load, **keys: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(**keys)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- what test is ----------------------------------------------------------------------------


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("keys", "test_is", "source", "rows"),
    [
        ({}, "official", "a/b", 20),
        ({"max_test_samples": 20}, "official", "a/b", 20),
        ({"max_test_samples": 7}, "sample of the official split", "a/b", 7),
        ({"test": "extra"}, "official", "a/b", 10),
        ({"train": "own.jsonl"}, "official", "a/b, own.jsonl", 20),
        ({"test": "own.jsonl"}, "given", "a/b, own.jsonl", 30),
        ({"test": "own.jsonl", "max_test_samples": 7}, "given", "a/b, own.jsonl", 7),
    ],
)
def test_only_the_hubs_own_test_split_is_official(
    load: Load, keys: dict[str, Any], test_is: str, source: str, rows: int
) -> None:
    table("own.jsonl", numbered("own", 30))
    found = load(dataset="a/b", **keys)
    assert (found.test_is, found.source, len(found.test)) == (test_is, source, rows)
    assert found.revision == COMMIT


def test_a_file_or_folder_of_the_users_is_given(load: Load) -> None:
    train = table("own/train.jsonl", numbered("train", 40))
    test = table("own/test.jsonl", numbered("test", 10))
    assert load(train=train, test=test).test_is == "given"
    folder = load(dataset="own", max_test_samples=5)
    assert (folder.test_is, folder.revision, len(folder.test)) == ("given", None, 5)
    assert load(train=train).test_is == "holdout"


# --- sizes and rows --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, (72, 8, 20)),
        ({"holdout": 30, "validation_size": 0}, (70, 0, 30)),
        # A share of what test leaves.
        ({"holdout": 0.5, "validation_size": 0.1}, (45, 5, 50)),
        ({"validation": "extra.jsonl"}, (80, 10, 20)),
        ({"test": "extra.jsonl"}, (90, 10, 10)),
        ({"test": "extra.jsonl", "validation": "more.jsonl"}, (100, 20, 10)),
        ({"max_train_samples": 9, "max_test_samples": 5}, (9, 8, 5)),
        ({"max_train_samples": 900, "max_test_samples": 900}, (72, 8, 20)),
    ],
)
def test_sizes(load: Load, keys: dict[str, Any], expected: tuple[int, int, int]) -> None:
    table("extra.jsonl", numbered("extra", 10))
    table("more.jsonl", numbered("more", 20))
    found = load(train=table("train.jsonl", numbered("train", 100)), **keys)
    assert sizes(found) == expected
    assert list(found.validation.columns) == list(found.test.columns) == ["id", "text"]
    every = [*texts(found.train), *texts(found.validation), *texts(found.test)]
    assert len(set(every)) == sum(expected)


def test_only_texts_that_occur_once_leave_train(load: Load) -> None:
    twice = numbered("twice", 10)
    rows = [*twice, *numbered("once", 30), *(f" {text} " for text in twice)]
    found = load(train=table("train.jsonl", rows), holdout=10, validation_size=5)
    assert sizes(found) == (35, 5, 10)
    held = texts(found.test) + texts(found.validation)
    assert all(text.startswith("once") for text in held)
    assert len(set(held)) == 15
    assert found.report["duplicates_in_train"] == 10
    again = load(train="train.jsonl", holdout=10, validation_size=5)
    assert (texts(again.test), texts(again.validation)) == (
        texts(found.test),
        texts(found.validation),
    )
    assert again.fingerprint == found.fingerprint


def test_a_sample_leaves_the_other_splits_alone(load: Load) -> None:
    train = table("train.jsonl", numbered("train", 100))
    whole = load(train=train)
    some = load(train=train, max_train_samples=9, max_test_samples=5)
    assert set(texts(some.train)) < set(texts(whole.train))
    assert set(texts(some.test)) < set(texts(whole.test))
    assert texts(some.validation) == texts(whole.validation)


def test_a_sample_seed_draws_other_training_rows_and_the_same_test(workdir: Path) -> None:
    train = table("train.jsonl", numbered("train", 100))
    sizes = {"max_train_samples": 9, "max_test_samples": 5}
    some, same, other = (
        corpus.load(Data(train=train, sample_seed=seed, **sizes), labelled=False)
        for seed in (None, 0, 1)
    )
    assert texts(same.train) == texts(some.train) != texts(other.train)
    assert texts(other.test) == texts(some.test)
    assert not set(texts(other.train)) & {*texts(other.test), *texts(other.validation)}
    with pytest.raises(UserError, match="split_seed draws the training rows"):
        streaming.load(Data(train=train, sample_seed=1))


def test_a_given_test_is_sampled_alike_in_memory_and_on_disk(workdir: Path) -> None:
    train = table("train.jsonl", numbered("train", 40))
    data = Data(train=train, test=table("test.jsonl", numbered("test", 50)), max_test_samples=9)
    memory, disk = corpus.load(data, labelled=False), streaming.load(data)
    assert memory.test_is == disk.test_is == "given"
    assert memory.test.equals(disk.test)


# --- overlap ---------------------------------------------------------------------------------


def test_a_test_row_that_is_also_in_train_stops(load: Load) -> None:
    train = table("train.jsonl", numbered("train", 40))
    test = table("test.jsonl", [*numbered("test", 9), " train 3 "])
    message = refused(load, train=train, test=test, validation_size=0)
    assert message.startswith(
        "train.jsonl, test.jsonl: 1 of 10 test rows are also in train, the first is test-10; "
    )
    assert "allow_overlap: true" in message
    found = load(train=train, test=test, validation_size=0, allow_overlap=True)
    assert found.report["test_texts_in_train"] == 1
    assert found.report["overlapping_rows"] == ["test-10"]


def test_only_rows_that_are_used_overlap(load: Load) -> None:
    train = table("train.jsonl", numbered("train", 40))
    test = table("test.jsonl", numbered("train", 40))
    keys = {"train": train, "test": test, "validation_size": 0, "allow_overlap": True}
    assert load(**keys).report["test_texts_in_train"] == 40
    assert load(**keys, max_train_samples=12).report["test_texts_in_train"] == 12


# --- what the report counts ------------------------------------------------------------------


def test_the_report_counts_the_rows_of_all_splits(load: Load) -> None:
    train = table("train.jsonl", [*numbered("train", 40), " ", ""])
    found = load(train=train, test=table("test.jsonl", [*numbered("test", 10), ""]))
    assert found.report == {
        "duplicates_in_train": 0,
        "contradictions_in_train": 0,
        "contradicting_rows": [],
        "test_texts_in_train": 0,
        "validation_texts_in_train": 0,
        "test_texts_in_validation": 0,
        "overlapping_rows": [],
        "rejected": 0,
        "fixed": {"blank row left out": 3},
        "notes": [],
    }
    assert found.rejected == []


def test_rejected_rows_of_all_splits_are_counted(load: Load, request: Any) -> None:
    def chats(name: str, count: int) -> str:
        good = [{"role": "user", "content": name}, {"role": "assistant", "content": "yes"}]
        rows = [[good[0] | {"content": f"{name} {i}"}, good[1]] for i in range(count)]
        rows[6] = rows[6][:1]
        lines = [json.dumps({"messages": row}) for row in rows]
        Path(name).write_text("\n".join(lines), encoding="utf-8")
        return name

    load = corpus.load if request.node.callspec.params["load"] == "memory" else streaming.load
    data = Data(train=chats("train.jsonl", 200), test=chats("test.jsonl", 150))
    found = load(data, corpus.DOCUMENTS, labelled=False)
    assert found.report["rejected"] == len(found.rejected) == 2
    assert [row["line"] for row in found.rejected] == [7, 7]


# --- messages --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"holdout": 39},
            "train.jsonl: holdout: 39 of 40 rows cannot be taken from train; write a share such "
            "as 0.2, or add more rows",
        ),
        ({"holdout": 0.001}, "train.jsonl: holdout: 0.001 of 40 rows cannot be taken from train"),
        ({"holdout": 0}, "train.jsonl: holdout: 0 leaves no test rows; write a share"),
        (
            {"holdout": 10, "validation_size": 29},
            "train.jsonl: validation_size: 29 of 30 rows cannot be taken from train",
        ),
        ({"test": "blank.jsonl"}, "no usable rows"),
        ({"text": "body"}, "train.jsonl: no column 'body'; it has text (set `text:`"),
    ],
)
def test_what_cannot_be_split_is_one_line(load: Load, keys: dict[str, Any], message: str) -> None:
    table("blank.jsonl", [" ", ""])
    assert message in refused(load, train=table("train.jsonl", numbered("train", 40)), **keys)


@pytest.mark.usefixtures("hub")
def test_a_wrong_split_name_is_stopped_with_the_splits_that_exist(load: Load) -> None:
    message = refused(load, dataset="a/b", test="tset")
    assert message == (
        "a/b: no split 'tset'; it has train, test, extra (set `test:`; did you mean 'test'?)"
    )


def test_splits_with_other_columns_are_stopped(load: Load, request: Any) -> None:
    table("train.jsonl", numbered("train", 40))
    rows = [json.dumps({"prompt": f"p {i}", "completion": "c"}) for i in range(9)]
    Path("test.jsonl").write_text("\n".join(rows), encoding="utf-8")
    load = corpus.load if request.node.callspec.params["load"] == "memory" else streaming.load
    data = Data(train="train.jsonl", test="test.jsonl")
    with pytest.raises(UserError, match="has prompt, completion where train has text"):
        load(data, corpus.DOCUMENTS, labelled=False)


def test_untested_leaves_the_test_split_unread(load: Load) -> None:
    table("train.jsonl", numbered("train", 40))
    whole = {"train": "train.jsonl", "validation_size": 8}
    # The file of the test does not exist.
    found = load(**whole, test="test.jsonl", untested=True)
    assert found.test_is == "validation"
    assert texts(found.test) == texts(found.validation)
    assert sizes(found) == (32, 8, 8)
    # Of a folder, test.jsonl cannot be read.
    table("data/train.jsonl", numbered("train", 40))
    Path("data/test.jsonl").write_bytes(b"\x00\xff{")
    found = load(dataset="data", validation_size=8, untested=True)
    assert sizes(found) == (32, 8, 8)
    # A holdout is taken from train, and neither trained on nor scored.
    held = load(train="train.jsonl", holdout=10, validation_size=8)
    found = load(train="train.jsonl", holdout=10, validation_size=8, untested=True)
    assert texts(found.train) == texts(held.train)
    assert texts(found.test) == texts(held.validation)
    assert "needs validation rows" in refused(load, **whole | {"validation_size": 0}, untested=True)


def test_untested_leaves_the_test_of_the_hub_and_of_saved_splits_unread(
    load: Load, hub: None
) -> None:
    assert sizes(load(dataset="a/b", validation_size=10, untested=True)) == (50, 10, 10)
    parts = {"train": "train[:80%]", "test": "train[80%:]"}
    assert sizes(load(dataset="a/b", **parts, validation_size=8, untested=True)) == (40, 8, 8)
    assert sizes(load(dataset="a/b", test="extra", validation_size=10, untested=True)) == (
        50,
        10,
        10,
    )
    saved = {name: Dataset.from_dict({"text": numbered(name, 30)}) for name in ("train", "test")}
    DatasetDict(saved).save_to_disk("saved")
    for file in Path("saved/test").iterdir():
        file.unlink()
    assert sizes(load(dataset="saved", validation_size=10, untested=True)) == (20, 10, 10)


@pytest.mark.parametrize("rows", [2, 9, 1000])
def test_rows_without_classes_are_divided_as_by_scikit_learn(rows: int) -> None:
    places, count = numpy.arange(rows) * 3, max(rows // 5, 1)
    expected = train_test_split(places, test_size=count, random_state=7)
    found = splits.divided(places, None, count, 7)
    assert [part.tolist() for part in found] == [part.tolist() for part in expected]

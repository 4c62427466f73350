"""Published splits from Orange's .tab files."""

import sys
from pathlib import Path

import pytest

from finetune.data import corpus, orange_tables, readers
from finetune.recipe import Data

ROWS = 'Category\tText\nd\tstring\nclass\t\n\t\nearn\t"profit rose\ntea\tn a\n'


def test_rows_have_their_lines_and_nothing_is_quoted_or_missing(tmp_path: Path) -> None:
    (tmp_path / "some-train.tab").write_text(ROWS, encoding="utf-8")
    (tmp_path / "some-test.tab").write_text(ROWS.replace('"profit rose', "NA"), encoding="utf-8")
    found = orange_tables.splits(tmp_path / "some-train.tab", "some")
    train, test = found["train"].rows, found["test"].rows
    assert list(train["text"]) == ['"profit rose', "n a"]
    assert list(train["label"]) == ["earn", "tea"]
    assert list(train.index) == [5, 6]
    assert list(test["text"]) == ["NA", "n a"]
    assert found["test"].at(5) == "some [test]:5"


@pytest.mark.parametrize(
    ("name", "train", "test", "classes"),
    [("r8", 5485, 2189, 8), ("r52", 6532, 2568, 52), ("newsgroups", 11293, 7528, 20)],
)
def test_the_embedded_splits_have_their_published_sizes(
    name: str, train: int, test: int, classes: int
) -> None:
    tables, commit = readers.dataset(Data(dataset=f"embedded:{name}"))
    assert commit is None
    assert [len(tables[split].rows) for split in ("train", "test")] == [train, test]
    for table in tables.values():
        assert table.rows["label"].nunique() == classes
        assert table.rows["text"].str.strip().str.len().min() > 0


def test_the_test_split_is_the_official_one_and_validation_comes_from_train() -> None:
    data = corpus.load(Data(dataset="embedded:r8", validation_size=500, allow_overlap=True))
    assert data.test_is == "official"
    assert [len(data.train), len(data.validation), len(data.test)] == [4985, 500, 2189]
    assert data.report["test_texts_in_train"] == 4
    assert "orangecontrib.text" not in sys.modules

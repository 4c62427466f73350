"""Rows that occur twice are found, and rows that only look alike are not."""

from pathlib import Path

import pytest

from finetune.checks import duplicates
from finetune.checks.finding import Severity, joined
from tests.checks.made_up import load, reviews


def kinds(found: list) -> dict[str, tuple[int, Severity]]:
    return {finding.what: (finding.count, finding.severity) for finding in found}


def test_rows_without_duplicates_are_no_finding(tmp_path: Path) -> None:
    data = load(tmp_path, reviews(60), reviews(20, seed=1))
    assert duplicates.repeated(data, False) == []


def test_training_rows_that_occur_twice_are_counted(tmp_path: Path) -> None:
    rows = reviews(60)
    few = duplicates.repeated(load(tmp_path, rows + rows[:2], reviews(20, 1)), False)
    many = duplicates.repeated(load(tmp_path, rows + rows[:20], reviews(20, 1)), False)
    assert kinds(few) == {"training rows repeat an earlier one": (2, Severity.NOTE)}
    assert kinds(many) == {"training rows repeat an earlier one": (20, Severity.WARNING)}


@pytest.mark.parametrize(("allowed", "severity"), [(False, 2), (True, 1)])
def test_test_rows_in_train_are_an_error_unless_allowed(
    tmp_path: Path, allowed: bool, severity: int
) -> None:
    rows, test = reviews(60), reviews(20, seed=1)
    (found,) = duplicates.repeated(load(tmp_path, rows, test + rows[:3]), allowed)
    assert (found.count, found.severity) == (3, severity)
    assert [row.row for row in found.examples] == ["test-22", "test-23", "test-24"]
    assert found.examples[0].text == rows[0][0]


def test_a_text_with_two_labels_is_shown_with_both(tmp_path: Path) -> None:
    rows = reviews(60)
    data = load(tmp_path, [*rows, (rows[0][0], "positive")], reviews(20, seed=1))
    found = kinds(duplicates.repeated(data, False))
    assert found["training texts or images occur with different labels"] == (1, Severity.WARNING)
    (first, second) = duplicates.repeated(data, False)[0].examples
    assert {first.note, second.note} == {"negative", "positive"}


def near(folder: Path, changed: str, label: str) -> list:
    rows = reviews(60)
    text = rows[0][0].split()
    text[10] = changed
    data = load(folder, rows, [*reviews(20, seed=1), (" ".join(text), label)])
    every = duplicates.all_rows(data, 1000)
    pairs = duplicates.similar_texts(joined(every))
    return duplicates.near(data, every, pairs, "rows")


def test_a_text_with_one_other_word_is_nearly_the_same(tmp_path: Path) -> None:
    (found,) = near(tmp_path, "elsewhere", "negative")
    assert (found.what, found.count) == ("test rows are nearly the same as a training row", 1)
    assert found.severity == Severity.WARNING
    assert [row.row for row in found.examples] == ["test-22", "train-2"]


def test_nearly_the_same_texts_with_different_labels_are_a_finding_of_their_own(
    tmp_path: Path,
) -> None:
    _, found = near(tmp_path, "elsewhere", "positive")
    assert found.what == "pairs of nearly the same rows have different labels"
    assert {row.note for row in found.examples} == {"in train, negative", "in test, positive"}


def test_texts_of_the_same_words_in_another_order_are_not_nearly_the_same() -> None:
    words = [f"word{i}" for i in range(40)]
    assert duplicates.similar_texts([" ".join(words), " ".join(reversed(words))]) == []
    assert duplicates.similar_texts([" ".join(words), " ".join(words)]) == []
    assert duplicates.similar_texts([" ".join(words), " ".join([*words, "more"])]) == [(0, 1)]


def test_scripts_without_spaces_are_compared_by_characters() -> None:
    text = "这部电影非常好看演员的表演也很出色故事情节十分感人我会推荐给所有的朋友们去看"
    other = "昨天晚上我们在餐厅吃了一顿很糟糕的饭服务员态度不好菜也都凉了以后再也不会去那里"
    assert duplicates.similar_texts([text, other, f"{text}吧"]) == [(0, 2)]


def test_a_sample_of_the_rows_keeps_their_splits(tmp_path: Path) -> None:
    data = load(tmp_path, reviews(60), reviews(20, seed=1))
    some = duplicates.all_rows(data, 40)
    assert len(some) == 40
    assert all(row.id.startswith(row.split) for row in some.itertuples())

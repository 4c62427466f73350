"""Splits that differ are found, and splits of one source are not."""

from pathlib import Path

import pytest

from finetune.checks import shift
from finetune.checks.finding import Severity
from tests.checks.made_up import load, reviews

CHECKS = [shift.lengths, shift.vocabulary, shift.class_shares]


@pytest.mark.parametrize("check", CHECKS)
def test_splits_of_one_source_are_alike(tmp_path: Path, check) -> None:
    assert check(load(tmp_path, reviews(200), reviews(100, seed=1))) == []


def test_longer_test_texts_are_found(tmp_path: Path) -> None:
    (found,) = shift.lengths(load(tmp_path, reviews(200), reviews(100, seed=1, length=40)))
    assert found.severity == Severity.WARNING
    assert found.count == 100
    assert found.what.startswith("test texts are typically ")


def test_words_that_train_does_not_have_are_found(tmp_path: Path) -> None:
    test = [(text.replace("word", "term"), label) for text, label in reviews(100, seed=1)]
    (found,) = shift.vocabulary(load(tmp_path, reviews(200), test))
    # 15 of the 20 words of a text are random ones.
    assert found.what == "test texts have 75 % words that train does not have (usual here: 0 %)"


def test_other_shares_of_the_classes_are_found(tmp_path: Path) -> None:
    test = [row for i, row in enumerate(reviews(200, seed=1)) if i % 2 or i % 10 == 0]
    (found,) = shift.class_shares(load(tmp_path, reviews(200), test))
    assert found.what == "test rows: 17 % are negative, in train 50 %"


def test_few_test_rows_tell_nothing(tmp_path: Path) -> None:
    data = load(tmp_path, reviews(200), reviews(10, seed=1, length=40))
    assert [check(data) for check in CHECKS] == [[], [], []]


ENGLISH = "The waiter brought the soup after an hour, and number {} was cold by then."
GERMAN = "Der Kellner brachte die Suppe erst nach einer Stunde, und Nummer {} war schon kalt."


@pytest.mark.parametrize(("german", "severity"), [(0, None), (3, 0), (20, 1)])
def test_texts_in_another_language_are_counted(
    tmp_path: Path, german: int, severity: int | None
) -> None:
    texts = [(GERMAN if i < german else ENGLISH).format(i) for i in range(100)]
    data = load(tmp_path, [(text, "ab"[i % 2]) for i, text in enumerate(texts)])
    rows = data.train
    expected = sum("Kellner" in text for text in rows["text"])
    shown, found = shift.languages(rows)
    assert shown.startswith(f"en {100 * (1 - expected / len(rows)):.1f} %")
    assert [(each.count, each.severity) for each in found] == (
        [] if severity is None else [(expected, severity)]
    )
    assert all(row.note == "de" for each in found for row in each.examples)

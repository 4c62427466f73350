"""What gives the label away is found: a word, a column, a task that word counts solve."""

from pathlib import Path

import pytest

from finetune.checks import duplicates, labels, leaks
from finetune.data import readers
from finetune.recipe import Data
from tests.checks.made_up import load, reviews, write


def test_a_word_that_only_one_class_has_is_found(tmp_path: Path) -> None:
    every = "good great fine bad awful poor"
    rows = [(f"{every} {'[+]' * (label == 'positive')}", label) for _, label in reviews(100)]
    rows = [(f"{text} row{i}", label) for i, (text, label) in enumerate(rows)]
    (found,) = leaks.words(load(tmp_path, rows, reviews(20, seed=1)))
    assert found.count == 1
    assert found.examples[0].row == "[+]"
    assert found.examples[0].text == "in 50 of 50 rows of positive, and in 0 others"


def test_words_that_only_make_a_class_likely_are_not(tmp_path: Path) -> None:
    rows = [(f"{t} [{i % 3}]", label) for i, (t, label) in enumerate(reviews(100, length=8))]
    # Each opinion is in most rows of its class here, so that they alone would decide.
    mixed = [(f"{text} good bad great awful fine poor", label) for text, label in rows]
    assert leaks.words(load(tmp_path, mixed, reviews(20, seed=1))) == []


@pytest.mark.parametrize(
    ("cell", "named"),
    [
        (lambda i, positive: "web" if positive else "mail", "channel: its value"),
        (lambda i, positive: f"{'pos' if positive else 'neg'}_{i}", "channel: the kind of its"),
        (lambda i, positive: f"row_{i}", None),
        (lambda i, positive: ("web", "mail")[i % 3 == 0], None),
    ],
)
def test_a_column_that_tells_the_label_is_found(tmp_path: Path, cell, named: str | None) -> None:
    rows = [
        (text, label, cell(i, label == "positive")) for i, (text, label) in enumerate(reviews(100))
    ]
    header = ("text", "label", "channel")
    table = readers.read_table(write(tmp_path / "mine.csv", rows, header))  # pyright: ignore[reportArgumentType]
    found = leaks.columns(table, Data())
    if named is None:
        assert found == []
    else:
        assert f"{found[0].examples[0].row}: {found[0].examples[0].text}".startswith(named)


@pytest.mark.parametrize(("opinions", "expected"), [(True, 1), (False, 0)])
def test_a_task_that_word_counts_solve_is_found(
    tmp_path: Path, opinions: bool, expected: int
) -> None:
    rows = reviews(300)
    if not opinions:
        rows = [(text, ("a", "b")[(i // 3) % 2]) for i, (text, _) in enumerate(rows)]
    data = load(tmp_path, rows)
    found = labels.out_of_fold(duplicates.all_rows(data, 1000), 2)
    assert found is not None
    assert len(leaks.too_easy(found)) == expected

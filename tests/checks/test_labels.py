"""Rare classes and wrong labels are found; balanced and right ones are not."""

import json
from pathlib import Path

from finetune.checks import duplicates, labels
from finetune.checks.finding import Severity
from finetune.data import corpus
from finetune.recipe import Data
from tests.checks.made_up import load, reviews


def flipped(rows: list[tuple[str, str]], places: range) -> list[tuple[str, str]]:
    other = {"negative": "positive", "positive": "negative"}
    return [(text, other[label] if i in places else label) for i, (text, label) in enumerate(rows)]


def suspects(folder: Path, rows: list[tuple[str, str]]) -> list:
    data = load(folder, rows, reviews(20, seed=1))
    found = labels.out_of_fold(duplicates.all_rows(data, 1000), 2)
    assert found is not None
    return labels.suspects(found, data)


def test_flipped_labels_are_suspected_and_named(tmp_path: Path) -> None:
    (found,) = suspects(tmp_path, flipped(reviews(400), range(0, 24, 4)))
    assert found.severity == Severity.WARNING
    # Line 1 is the header.
    flipped_ids = {f"train-{i + 2}" for i in range(0, 24, 4)}
    assert {row.row for row in found.examples} <= flipped_ids
    assert found.count is not None
    assert 4 <= found.count <= 8
    assert found.examples[0].note.startswith("positive; linear model: negative, ")


def test_right_labels_are_not_suspected(tmp_path: Path) -> None:
    assert suspects(tmp_path, reviews(400)) == []


def test_random_labels_are_no_warning(tmp_path: Path) -> None:
    texts = [text for text, _ in reviews(400, length=12)]
    rows = [(text, ("a", "b")[(i // 3) % 2]) for i, text in enumerate(texts)]
    data = load(tmp_path, rows)
    found = labels.out_of_fold(duplicates.all_rows(data, 1000), 2)
    assert found is not None
    assert all(each.severity == Severity.NOTE for each in labels.suspects(found, data))


def test_classes_with_too_few_rows_to_hold_some_out_are_left_out(tmp_path: Path) -> None:
    data = load(tmp_path, [*reviews(60), ("rare words only", "rare")], reviews(20, seed=1))
    found = labels.out_of_fold(duplicates.all_rows(data, 1000), 3)
    assert found is not None
    assert found.probabilities.shape == (80, 3)
    assert labels.out_of_fold(data.train.iloc[:4], 3) is None


def test_balanced_classes_are_no_finding(tmp_path: Path) -> None:
    assert labels.balance(load(tmp_path, reviews(200), reviews(100, seed=1))) == []


def test_a_rare_class_is_counted_with_what_its_test_rows_can_tell(tmp_path: Path) -> None:
    train = reviews(200) + [(f"rare words {i}", "rare") for i in range(5)]
    test = reviews(100, seed=1) + [(f"other rare words {i}", "rare") for i in range(4)]
    few, unknown = labels.balance(load(tmp_path, train, test))
    assert few.count == 5
    assert few.what.startswith("training rows have the rarest class, rare, and 100")
    # Wilson's interval of 2 of 4 is 15.0 % to 85.0 %.
    assert unknown.count == 4
    assert "±35 points" in unknown.what
    assert few.severity == unknown.severity == Severity.WARNING


def test_a_class_that_test_does_not_have_is_found(tmp_path: Path) -> None:
    train = reviews(60) + [(f"third kind {i}", "other") for i in range(20)]
    (found,) = labels.balance(load(tmp_path, train, reviews(100, seed=1)))
    assert found.count == 0
    assert "±100 points" in found.what


def test_half_the_width_of_an_interval() -> None:
    assert round(labels.half_width(100), 1) == 9.6
    assert labels.half_width(20) < 20.5 < labels.half_width(15)
    assert labels.half_width(0) == 100


def test_several_labels_a_row_are_counted_each(tmp_path: Path) -> None:
    rows = [(text, "a,b" if i % 2 else "a") for i, (text, _) in enumerate(reviews(80))]
    data = load(tmp_path, rows, problem_type="multi_label_classification")
    assert labels.counts(data.train, data).tolist() == [
        len(data.train),
        sum(vector[1] for vector in data.train["label"]),
    ]


def test_types_of_entities_are_counted_as_classes_are(tmp_path: Path) -> None:
    rows = [
        {"tokens": [f"w{i}", "saw", f"n{i}"], "tags": ["B-PER", "O", "B-LOC" if i < 4 else "O"]}
        for i in range(120)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    keys = {"text": "tokens", "label": "tags", "holdout": 40, "validation_size": 0}
    found = corpus.load(Data(train=str(file), **keys), corpus.TAGGED)  # type: ignore[arg-type]
    assert labels.names(found) == ["LOC", "PER"]
    counted = labels.counts(found.train, found) + labels.counts(found.test, found)
    assert counted.tolist() == [4, 120]
    rare, unsure = labels.balance(found)
    assert rare.what.startswith("training entities have the rarest type, LOC, and 80 the largest")
    assert unsure.what.startswith("test entities have the type LOC: its recall is known to ±")

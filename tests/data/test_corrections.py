"""Corrections join train and nothing else; what is done with each is counted and named."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from finetune.data import corpus, corrections, findings, streaming
from finetune.data.corpus import Corpus
from finetune.errors import UserError
from finetune.recipe import Data
from tests.conftest import sentences, write_csv

RUN = "runs/old"
FILE = f"{RUN}/{corrections.FILE}"


@pytest.fixture(autouse=True)
def reviews(workdir: Path) -> None:
    write_csv(workdir / "reviews.csv", sentences(136))


def correct(*rows: dict[str, Any], file: str = FILE) -> None:
    """Appends corrections as the server does, with what the model had said."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    said = {"prediction": "negative", "probabilities": {"negative": 0.9, "positive": 0.1}}
    with Path(file).open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row | said | {"time": "now"}) + "\n" for row in rows)


def load(**keys: Any) -> Corpus:
    return corpus.load(Data(**{"train": "reviews.csv", "holdout": 24, "add_feedback": RUN} | keys))


def labels_of(found: Corpus, text: str) -> list[str]:
    rows = found.train.loc[found.train["text"] == text, "label"]
    return [found.label_names[label] for label in rows]


def test_corrections_join_train_and_no_other_split() -> None:
    before = load(add_feedback=None)
    correct({"text": "a new film", "label": "positive"}, {"text": "a plot", "label": "negative"})
    found = load()
    assert labels_of(found, "a new film") == ["positive"]
    assert labels_of(found, "a plot") == ["negative"]
    assert list(found.train["id"])[-2:] == [f"{FILE}:1", f"{FILE}:2"]
    assert len(found.train) == len(before.train) + 2
    assert found.validation.equals(before.validation)
    assert found.test.equals(before.test)
    assert found.fingerprint != before.fingerprint
    assert found.report["corrections"] == 2
    assert "2 corrections joined to train" in findings.describe(found.report)


def test_sampling_leaves_the_corrections() -> None:
    correct({"text": "a new film", "label": "positive"})
    found = load(max_train_samples=10)
    assert len(found.train) == 11
    assert labels_of(found, "a new film") == ["positive"]


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_correction_of_a_held_out_row_is_a_leak(split: str) -> None:
    row = getattr(load(add_feedback=None), split).iloc[0]
    correct(
        {"text": "a new film", "label": "positive"},
        # Blanks at the ends do not make it another text.
        {"text": f" {row['text']} ", "label": ("positive", "negative")[row["label"]]},
    )
    found = load()
    assert row["text"] not in {text.strip() for text in found.train["text"]}
    assert found.report["corrections"] == 1
    assert found.report[f"corrections_of_{split}_rows"] == 1
    reason = f"corrects a row of {split}, so training on it would leak"
    assert found.rejected == [{"source": FILE, "line": 2, "reason": reason}]
    assert f"1 corrections of {split} rows rejected" in findings.describe(found.report)


def test_a_correction_replaces_the_training_row() -> None:
    rows = load(add_feedback=None).train
    first, second = rows["text"].iloc[0], rows["text"].iloc[1]
    names = ["negative", "positive"]
    wrong, right = names[1 - rows["label"].iloc[0]], names[rows["label"].iloc[1]]
    correct({"text": first, "label": wrong}, {"text": second, "label": right})
    found = load()
    assert labels_of(found, first) == [wrong]
    assert labels_of(found, second) == [right]
    assert len(found.train) == len(rows)
    assert found.report["corrections_contradicting_train"] == 1
    assert found.report["corrections_repeating_train"] == 1
    assert found.report["contradictions_in_train"] == found.report["duplicates_in_train"] == 0


def test_the_newest_correction_counts() -> None:
    correct({"text": "new", "label": "positive"}, {"text": "new ", "label": "negative"})
    found = load()
    assert found.train["id"].iloc[-1] == f"{FILE}:2"
    assert found.report["corrections_superseded"] == found.report["corrections"] == 1


def test_several_runs() -> None:
    other = "runs/other"
    correct({"text": "from one", "label": "positive"})
    correct({"text": "from two", "label": "negative"}, file=f"{other}/seed-0/{corrections.FILE}")
    for given in (f"{RUN},{other}", [RUN, other]):
        found = load(add_feedback=given)
        assert list(found.train["text"])[-2:] == ["from one", "from two"]


def test_a_run_reads_the_lines_that_there_were() -> None:
    correct({"text": "early", "label": "positive"})
    kept = corrections.pinned(RUN)
    assert kept == [f"{FILE}[:1]"]
    correct({"text": "late", "label": "positive"})
    # A line that is being written has no end yet.
    with Path(FILE).open("a") as stream:
        stream.write('{"text": "torn')
    assert corrections.pinned(RUN) == [f"{FILE}[:2]"]
    assert corrections.pinned(kept) == kept
    found = load(add_feedback=kept)
    assert found.train["text"].iloc[-1] == "early"


def test_a_broken_line_is_rejected_by_its_number() -> None:
    correct({"text": "one", "label": "positive"})
    with Path(FILE).open("a") as stream:
        stream.write('{"text": "torn\n')
    correct({"text": "two", "label": "positive"})
    found = load()
    assert list(found.train["text"])[-2:] == ["one", "two"]
    (row,) = found.rejected
    assert (row["source"], row["line"]) == (FILE, 2)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"text": "a", "label": "neutral"}], f"{FILE}:1: label 'neutral' does not occur in train"),
        ([], f"add_feedback: {RUN}: needs one run with corrections and has no feedback.jsonl"),
    ],
)
def test_what_cannot_be_used_is_an_error(rows: list[dict[str, Any]], words: str) -> None:
    if rows:
        correct(*rows)
    with pytest.raises(UserError, match=words.replace("[", r"\[")):
        load()


def test_rows_without_labels_take_no_corrections() -> None:
    correct({"text": "a", "label": "positive"})
    for loading in (lambda data: corpus.load(data, labelled=False), streaming.load):
        with pytest.raises(UserError, match="add_feedback: corrections are labels"):
            loading(Data(train="reviews.csv", add_feedback=RUN))


def test_pairs_and_other_columns(workdir: Path) -> None:
    rows = [f"{text},other {i},{label}" for i, (text, label) in enumerate(sentences(60))]
    Path("pairs.csv").write_text("first,second,kind\n" + "\n".join(rows), encoding="utf-8")
    correct({"text": "a", "text_pair": "b", "label": "positive"})
    found = load(train="pairs.csv", text="first", text_pair="second", label="kind")
    assert list(found.train.iloc[-1][["text", "text_pair", "label"]]) == ["a", "b", 1]


def test_several_labels() -> None:
    rows = [f"{text},{i % 2},{i % 3 % 2}" for i, (text, _) in enumerate(sentences(60))]
    Path("several.csv").write_text("text,old,long\n" + "\n".join(rows), encoding="utf-8")
    correct({"text": "a", "label": ["long"]}, {"text": "b", "label": []})
    kind = "multi_label_classification"
    found = load(train="several.csv", label=["old", "long"], problem_type=kind)
    assert found.label_names == ["old", "long"]
    assert list(found.train["label"])[-2:] == [[0.0, 1.0], [0.0, 0.0]]


def test_numbers() -> None:
    write_csv(Path("stars.csv"), [(text, f"{i % 5}") for i, (text, _) in enumerate(sentences(60))])
    correct({"text": "a", "label": 4.5})
    found = load(train="stars.csv", problem_type="regression")
    assert found.train["label"].iloc[-1] == 4.5


def test_images() -> None:
    for i in range(60):
        folder = Path("photos") / ("cat", "dog")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (4 * i, 0, 0)).save(folder / f"{i}.png")
    before = corpus.load(Data(train="photos", holdout=10), corpus.IMAGES)
    held_out = Path(before.test["image"].iloc[0]).read_bytes()
    names = {"new.png": None, "leak.png": held_out}
    for name, content in names.items():
        path = Path(RUN) / "feedback" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content:
            path.write_bytes(content)
        else:
            Image.new("RGB", (9, 9), (0, 255, 0)).save(path)
        correct({"image": f"feedback/{name}", "label": "cat"})
    found = corpus.load(Data(train="photos", holdout=10, add_feedback=RUN), corpus.IMAGES)
    assert found.train["image"].iloc[-1] == f"{RUN}/feedback/new.png"
    assert len(found.train) == len(before.train) + 1
    assert found.report["corrections_of_test_rows"] == 1

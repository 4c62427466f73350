"""Wrong labels are found, listed, corrected and learned."""

import csv
from pathlib import Path

import pytest

from finetune import cli, run_directory
from finetune.data import corpus
from finetune.recipe import Data, load
from tests.conftest import sentences, write_csv

OTHER = {"negative": "positive", "positive": "negative"}


@pytest.fixture
def flipped(tiny_recipe: Path) -> set[str]:
    """Texts whose label in reviews.csv is wrong: 8 of 136 rows."""
    rows = sentences(136)
    wrong = {text for text, _ in rows[::17]}
    write_csv(Path("reviews.csv"), [(t, OTHER[n] if t in wrong else n) for t, n in rows])
    return wrong


def test_wrong_labels_are_listed_corrected_and_learned(
    flipped: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tiny.yaml", "--num_train_epochs", "6", "--validation_size", "0"]
    cli.main(["train", *words, "--find_label_errors"])
    run = run_directory.Run("runs/tiny/seed-0")
    with (run.folder / "label_errors.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    trained = set(corpus.load(load("tiny.yaml", ["--validation_size", "0"]).data).train["text"])
    wrong = flipped & trained
    found = [row for row in rows[: len(wrong) + 2] if row["text"] in wrong]
    assert len(found) >= len(wrong) - 1
    assert all(row["suggested"] == OTHER[row["label"]] for row in found)
    assert {row["probably_wrong"] for row in found} == {"yes"}
    qualities = [float(row["quality"]) for row in rows]
    assert qualities == sorted(qualities)
    assert "of 112 training labels are probably wrong" in capsys.readouterr().err
    assert not (run.folder / "label_errors").exists()
    assert "Labels that are probably wrong" in (run.folder / "report.html").read_text("utf-8")

    for row in found:
        row["label"] = row["suggested"]
    with Path("fixed.csv").open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    cli.main(["train", *words, "--corrections", "fixed.csv"])
    data = run_directory.Run("runs/tiny-corrected/seed-0").results()["data"]
    assert data["corrections_contradicting_train"] == len(found)
    assert data["corrections_repeating_train"] == len(rows) - len(found)
    assert data["train"] == run.results()["data"]["train"]


def test_a_finished_run_can_be_judged_later(flipped: set[str]) -> None:
    cli.main(["train", "tiny.yaml"])
    folder = Path("runs/tiny/seed-0")
    before = (folder / "results.json").read_bytes()
    cli.main(["train", "tiny.yaml", "--resume", "--find_label_errors"])
    assert (folder / "label_errors.csv").is_file()
    assert (folder / "results.json").read_bytes() == before
    # It belongs to the run, and goes with it.
    cli.main(["train", "tiny.yaml", "--overwrite"])
    assert not (folder / "label_errors.csv").exists()


def test_corrections_of_test_rows_are_rejected(flipped: set[str]) -> None:
    test = corpus.load(Data(train="reviews.csv", holdout=24)).test
    write_csv(Path("fixed.csv"), [(test["text"].iloc[0], "negative"), ("a new film", "positive")])
    found = corpus.load(Data(train="reviews.csv", holdout=24, corrections="fixed.csv"))
    assert found.report["corrections_of_test_rows"] == 1
    assert found.report["corrections"] == 1
    assert found.train["text"].iloc[-1] == "a new film"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--minutes", "3"], "keep one"),
        (["--problem_type", "regression"], "needs one label a row"),
        (["--task", "fill-mask"], "has no labels of whole texts"),
    ],
)
def test_labels_that_cannot_be_judged(
    flipped: set[str], flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["train", "tiny.yaml", "--find_label_errors", *flags])
    assert message in capsys.readouterr().err

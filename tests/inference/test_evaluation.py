"""``finetune evaluate`` on runs of tiny models."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pandas
import pytest

from finetune import cli, run_directory
from finetune.errors import UserError
from finetune.evaluation import intervals
from finetune.inference import evaluation
from finetune.report import evaluation as shown
from tests.conftest import sentences, train_job, write_csv


@pytest.fixture
def run(tiny_recipe: Path) -> run_directory.Run:
    return train_job(tiny_recipe)[0]


def write_tested(run: run_directory.Run, path: str, **columns: list[str]) -> pandas.DataFrame:
    """The run's test rows as a new file with other column names."""
    rows = run.predictions()
    frame = pandas.DataFrame({"review": rows["text"], "mood": rows["label"], **columns})
    frame.to_csv(path, index=False)
    return frame


COLUMNS = {"text": "review", "label": "mood"}


def test_the_tested_rows_give_the_run_s_own_results(run: run_directory.Run) -> None:
    write_tested(run, "new.csv")
    found = evaluation.evaluate(run, "new.csv", COLUMNS)
    results = run.results()
    assert found["rows"] == 24
    assert found["confusion"] == results["confusion"]
    assert found["per_class"] == results["per_class"]
    for name, scores in results["metrics"].items():
        assert found["metrics"][name] == pytest.approx(scores, abs=1e-5)
    assert {*found["drift"]} == {
        *("predicted right", "confidence", "words in a text", "labelled negative")
    }
    for value in found["drift"].values():
        assert value["new"] == pytest.approx(value["tested"], abs=1e-5)
        assert value["low"] < 0 < value["high"]
    assert found["overlap"] == {"rows": 0, "first": []}


def test_rows_of_train_are_counted_and_unknown_where_the_data_is_gone(
    run: run_directory.Run,
) -> None:
    tested = {*run.predictions()["text"]}
    trained = [row for row in sentences(136) if row[0] not in tested]
    rows = sentences(150)[136:] + trained[:100]
    found = evaluation.evaluate(run, str(write_csv(Path("new.csv"), rows)), {})
    # 16 of the 112 others validate.
    assert 84 <= found["overlap"]["rows"] <= 100
    assert "of the rows are also in train: new-" in shown.text(found)
    Path("reviews.csv").unlink()
    found = evaluation.evaluate(run, "new.csv", {})
    assert "reviews.csv" in found["overlap"]["reason"]
    assert "Whether rows are also in train is unknown" in shown.text(found)


def test_a_file_of_one_class_and_a_row_that_cannot_be_used(run: run_directory.Run) -> None:
    rows = [(text, label) for text, label in sentences(500)[136:] if label == "positive"]
    path = write_csv(Path("new.csv"), [*rows, ("the film", "")])
    found = evaluation.evaluate(run, str(path), {})
    assert found["rows"] == len(rows)
    assert found["rejected"] == 1
    assert found["per_class"]["negative"]["rows"] == 0
    assert found["drift"]["labelled negative"]["new"] == 0
    text = shown.text(found)
    assert "1 rows of the file cannot be used" in text
    assert "-0.4" in next(line for line in text.splitlines() if line.startswith("labelled"))
    assert "differs" in next(line for line in text.splitlines() if line.startswith("labelled"))


@pytest.mark.parametrize(
    ("changes", "by", "message"),
    [
        ({}, None, "no column 'text'"),
        ({"text": "review", "label": "other"}, None, "label 'x' does not occur in train"),
        (COLUMNS, "moot", "--by: new.csv has no column 'moot'; did you mean 'mood'?"),
        (COLUMNS, "review", "--by review: has 24 different values; at most 20"),
        (COLUMNS | {"max_length": "8"}, None, "--max_length: evaluate takes the run's own"),
    ],
)
def test_a_mistake_is_one_line(
    run: run_directory.Run, changes: dict[str, str], by: str | None, message: str
) -> None:
    write_tested(run, "new.csv", other=["x"] * 24)
    with pytest.raises(UserError, match=r"^[^\n]*$") as error:
        evaluation.evaluate(run, "new.csv", changes, by)
    assert message in str(error.value)


def test_the_command_prints_a_table_or_json(run: run_directory.Run, capsys: Any) -> None:
    write_tested(run, "new.csv", source=["web", "app"] * 12)
    words = ["evaluate", str(run), "new.csv", "--text", "review", "--label", "mood"]
    cli.main([*words, "--by", "source"])
    text = capsys.readouterr().out
    assert all(len(line) <= 80 for line in text.splitlines())
    for part in ("accuracy", "the run's test rows", "negative", "words in a text", "app", "web"):
        assert part in text
    cli.main([*words, "--format", "json", "--by", "source"])
    found = json.loads(capsys.readouterr().out)
    assert [each["rows"] for each in found["slices"]] == [12, 12]
    whole = found["metrics"]["accuracy"]["value"]
    assert sum(each["value"] for each in found["slices"]) / 2 == pytest.approx(whole)


def sliced(right: numpy.ndarray, column: list[Any]) -> list[dict[str, Any]]:
    """The slices of rows that were predicted right (1.0) or wrong, without a model."""

    def score(outputs: numpy.ndarray, labels: numpy.ndarray) -> dict[str, Any]:
        return {"metrics": {"accuracy": intervals.wilson(int(outputs.sum()), len(outputs))}}

    given: Any = SimpleNamespace(
        table=pandas.DataFrame({"by": column}), labels=numpy.zeros(len(right)), score=score
    )
    return evaluation._slices(given, right, {"right": right}, "by", "accuracy")


def test_a_slice_that_differs_is_told_from_chance() -> None:
    draw = numpy.random.default_rng(0)
    right = (draw.random(2000) < 0.9).astype(float)
    names = draw.choice(list("abcdefghij"), 2000)
    assert not any(each["differs"] for each in sliced(right, list(names)))
    right[names == "c"] = draw.random((names == "c").sum()) < 0.7
    assert [each["name"] for each in sliced(right, list(names)) if each["differs"]] == ["c"]


def test_numbers_are_sliced_at_their_quartiles() -> None:
    found = sliced(numpy.ones(400), [str(i) for i in range(400)])
    assert [each["rows"] for each in found] == [100] * 4
    assert found[0]["name"].endswith("99.75]")


def test_the_difference_of_other_rows_covers_the_truth_in_95_of_100_draws() -> None:
    draw = numpy.random.default_rng(0)
    covered = 0
    for _ in range(400):
        found = intervals.unpaired_difference(draw.normal(1, 1, 40), draw.normal(0.5, 3, 25))
        covered += found["low"] <= 0.5 <= found["high"]
    assert 0.92 <= covered / 400 <= 0.98
    same = intervals.unpaired_difference(numpy.ones(3), numpy.zeros(2))
    assert (same["low"], same["value"], same["high"]) == (1, 1, 1)

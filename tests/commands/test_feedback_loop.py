"""Corrections of one run are training rows of the next, and both are compared."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune import cli, recipe
from finetune.run_directory import Run
from finetune.serving import feedback

OLD, NEW = Run("runs/tiny/seed-0"), Run("runs/tiny-feedback/seed-0")
FILE = "runs/tiny/seed-0/feedback.jsonl"


@pytest.fixture
def trained(tiny_recipe: Path) -> Callable[..., None]:
    """Trains the tiny recipe, as the command line does."""
    return lambda *flags: cli.main(["train", "tiny.yaml", "--max_steps", "2", *flags])


def test_the_loop(trained: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    trained()
    tested = OLD.predictions()
    leak = {"text": tested["text"].iloc[0], "label": "positive"}
    feedback.append(OLD.folder, {"text": "a new film", "label": "negative"})
    feedback.append(OLD.folder, leak)
    capsys.readouterr()
    trained("--add_feedback", "runs/tiny")

    shown = capsys.readouterr().err
    assert "1 corrections joined to train" in shown
    assert "1 corrections of test rows rejected" in shown
    found = NEW.results()["data"]
    assert (found["corrections"], found["corrections_of_test_rows"]) == (1, 1)
    assert found["train"] == OLD.results()["data"]["train"] + 1
    assert NEW.predictions()["text"].equals(tested["text"])
    (rejected,) = map(json.loads, (NEW.folder / "rejected.jsonl").read_text().splitlines())
    assert (rejected["source"], rejected["line"]) == (FILE, 2)
    assert recipe.read(NEW.folder / "recipe.yaml").data.add_feedback == [f"{FILE}[:2]"]

    # Corrections that came later change nothing for a run that is resumed.
    feedback.append(OLD.folder, {"text": "another film", "label": "negative"})
    (NEW.folder / "results.json").unlink()
    cli.main(["resume", str(NEW)])
    again = NEW.results()["data"]
    assert (again["corrections"], again["fingerprint"]) == (1, found["fingerprint"])

    capsys.readouterr()
    cli.main(["compare", "runs/tiny", "runs/tiny-feedback"])
    lines = capsys.readouterr().out.splitlines()
    (start,) = [i for i, line in enumerate(lines) if line.startswith("corrected rows")]
    rows = {line.split()[0]: line.split()[-2:] for line in lines[start + 2 : start + 4]}
    # All three corrected rows, and how many of them each has learned.
    assert rows == {"tiny": ["3", "0"], "tiny-feedback": ["3", "1"]}


def test_a_run_without_corrections(
    trained: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    trained()
    with pytest.raises(SystemExit) as stop:
        trained("--add_feedback", "runs/tiny")
    assert stop.value.code == 2
    assert "`finetune serve runs/tiny` collects it" in capsys.readouterr().err
    assert not NEW.folder.exists()

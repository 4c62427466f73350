"""A task from outside of the package goes through everything that a task of the package does."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune import cli, recipe, run_directory, tasks
from finetune.errors import UserError
from finetune.report import files
from tests.conftest import interrupted, train
from tests.tasks import toy_task

TASKS = [*tasks.MODULES, toy_task.Tagging.name]


@pytest.fixture
def toy_recipe(tiny_recipe: Path) -> Path:
    text = tiny_recipe.read_text(encoding="utf-8")
    text = text.replace("text-classification", toy_task.Tagging.name)
    tiny_recipe.write_text(text.replace("num_train_epochs: 2", "num_train_epochs: 3"), "utf-8")
    return tiny_recipe


def test_a_task_from_outside_trains_tests_predicts_and_reports(
    toy_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["train", str(toy_recipe), "--learning_rate", "5e-3"])
    assert "always other" in capsys.readouterr().out
    run = run_directory.Run("runs/tiny/seed-0")
    results = run.results()
    found = results["metrics"]["accuracy"]
    assert found["n"] == 24
    assert found["value"] > results["baselines"]["always other"]["accuracy"]["value"] + 0.1
    assert results["baselines"]["always other"]["difference"]["low"] > 0

    # What the test found is what the saved model predicts, word by word.
    rows = run.predictions()
    cli.main(["predict", str(run), *rows["text"]])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prediction"] for line in lines] == [list(p) for p in rows["prediction"]]
    shares = [
        sum(a == b for a, b in zip(label, prediction, strict=True)) / len(label)
        for label, prediction in zip(rows["label"], rows["prediction"], strict=True)
    ]
    assert sum(shares) / len(shares) == pytest.approx(found["value"])

    card = (run.model / "README.md").read_text(encoding="utf-8")
    assert 'tag = pipeline("toy-tagging", model="runs/tiny/seed-0/model")' in card
    assert "It knows a dozen words." in card
    assert (run.folder / "report.html").is_file()


def test_the_report_shows_its_mistakes_as_the_task_does(toy_recipe: Path) -> None:
    run = train(toy_recipe, "--max_steps", "1")
    files.write(run)
    rows = run.predictions()
    wrong = [i for i in range(24) if list(rows["label"][i]) != list(rows["prediction"][i])]
    assert wrong
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    for i in wrong[:20]:
        assert rows["text"][i] in page
        assert " ".join(rows["label"][i]) in page


@pytest.mark.parametrize("method", ["full", "lora"])
def test_it_resumes_to_the_same_bits(toy_recipe: Path, method: str) -> None:
    flags = ["--method", method]
    whole = train(toy_recipe, *flags, "--output_dir", "runs/whole")
    build = tasks.find(toy_task.Tagging.name).build
    with pytest.raises(KeyboardInterrupt):
        train(toy_recipe, *flags, build=interrupted(build))
    run = train(toy_recipe, *flags, resume=True)
    assert run.history() == whole.history()
    assert run.results()["metrics"] == whole.results()["metrics"]


def test_it_says_what_it_cannot_do(toy_recipe: Path) -> None:
    run = train(toy_recipe, "--max_steps", "1")
    with pytest.raises(SystemExit) as stop:
        cli.main(["generate", str(run), "A film"])
    assert stop.value.code == 2


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"r.yaml:1: task 'text-clasification' is unknown; did you"):
        tasks.find("text-clasification", "r.yaml:1")


@pytest.mark.parametrize("name", TASKS)
def test_every_task_fulfils_the_contract(name: str, toy_recipe: Path) -> None:
    task: Any = tasks.find(name)
    assert task.name == name
    assert callable(task.auto_model.from_pretrained)
    assert callable(task.auto_processor.from_pretrained)
    if type(task).read_rows is tasks.base.Task.read_rows:
        with pytest.raises(UserError, match="gives no labels"):
            task.read_rows(["a text"], None, recipe.load(toy_recipe))
    else:
        assert type(task).batches is not tasks.base.Task.batches

"""Several seeds of one recipe, as one command."""

import json
from pathlib import Path

import pytest

from finetune import cli, run_directory
from finetune.errors import UserError
from finetune.studies import seeds

SHORT = ["--max_steps", "2", "--eval_strategy", "steps", "--eval_steps", "2"]
SHORT += ["--save_strategy", "steps", "--save_steps", "2"]


@pytest.mark.parametrize(
    ("text", "expected"), [("3", [0, 1, 2]), ("0,7,42", [0, 7, 42]), ("5,4", [5, 4])]
)
def test_seeds_are_a_number_or_a_list(text: str, expected: list[int]) -> None:
    assert seeds.parse(text) == expected


@pytest.mark.parametrize("text", ["1", "0", "-3", "many", "1,1", "4,x", "7,"])
def test_other_seeds_are_a_mistake(text: str) -> None:
    with pytest.raises(UserError, match="takes a number of seeds"):
        seeds.parse(text)


def test_seeds_are_trained_aggregated_and_continued(
    tiny_recipe: Path, started: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", str(tiny_recipe), *SHORT, "--seeds", "3,5"]
    cli.main(command)
    folder = Path("runs/tiny")
    found = json.loads((folder / "seeds.json").read_text(encoding="utf-8"))
    runs = {seed: run_directory.Run(folder / f"seed-{seed}") for seed in (3, 5)}
    values = {s: run.results()["metrics"]["accuracy"]["value"] for s, run in runs.items()}
    validation = {s: run.results()["chosen"]["value"] for s, run in runs.items()}
    assert [runs[s].results()["seed"] for s in runs] == [3, 5]
    assert found["values"] == {str(s): v for s, v in values.items()}
    assert found["validation"] == {str(s): v for s, v in validation.items()}
    assert found["mean"]["value"] == pytest.approx(sum(values.values()) / 2)
    assert found["worst"] == min(values, key=lambda s: values[s])
    assert found["over_rows"]["value"] == pytest.approx(found["mean"]["value"])
    # What validation prefers is what other commands take.
    best = max(validation, key=lambda s: validation[s])
    assert run_directory.one(str(folder)).folder.name == f"seed-{best}" == found["kept"]
    card = (runs[3].model / "README.md").read_text(encoding="utf-8")
    assert f"Validation prefers seed {best}" in card
    assert "One seed was trained" not in card
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    shown = capsys.readouterr().out
    assert "95 % t interval over 2 seeds (3, 5)" in " ".join(shown.split())

    assert len(started) == 2
    # Killed in the second run, after a checkpoint.
    (runs[5].folder / "results.json").unlink()
    cli.main(command)
    assert len(started) == 3
    assert "--resume" in started[2]
    again = json.loads((folder / "seeds.json").read_text(encoding="utf-8"))
    assert again == found

    with pytest.raises(SystemExit):
        cli.main([*command, "--learning_rate", "1e-4"])
    assert "training.learning_rate was 0.002 and is 0.0001" in capsys.readouterr().err
    assert len(started) == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--seed", "1"], "--seeds and --seed contradict each other"),
        (["--resume", "--allow-changed", "data"], "--allow-changed is for a single run"),
        (["--minutes", "3"], "--minutes is for a single run; leave it out, or --seeds"),
    ],
)
def test_options_that_contradict_seeds(
    more: list[str], message: str, tiny_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", str(tiny_recipe), "--seeds", "2", *more])
    assert message in capsys.readouterr().err

"""``finetune train --minutes``: what is chosen for a made-up forecast, and when training ends."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy
import pytest

from finetune import cli, recipe, run_directory
from finetune.errors import UserError
from finetune.forecast import budget, measuring
from finetune.forecast.measuring import Forecast
from finetune.recipe import Recipe
from finetune.training.callbacks import TimeLimit
from tests.conftest import train
from tests.forecast.test_forecast import FORECAST

# Three epochs of 125 steps of 32 rows; an evaluation takes as long as 10 steps.
MADE_UP = dataclasses.replace(
    FORECAST,
    **{"rows": 4000, "steps_in_epoch": 125, "steps": 375, "evaluations": 3},
    **{"step_seconds": 1.0, "evaluation_seconds": 10.0, "test_seconds": 20.0},
    preparation_seconds=10.0,
    train_seconds={"value": 405.0, "low": 400.0, "high": 410.0, "n": 15},
    lengths=numpy.array([40] * 3700 + [250] * 300),
)


def text(**training: Any) -> Recipe:
    read = recipe.load(
        Path(__file__).parents[2] / "recipes/rotten_tomatoes/minilm.yaml", ["--max_length", "256"]
    )
    return dataclasses.replace(read, training=read.training | training)


def seconds_in_all(choice: budget.Choice, forecast: Forecast, left: float) -> float:
    besides = forecast.preparation_seconds + forecast.test_seconds + budget.RESERVE * left
    return besides + choice.seconds


def test_a_recipe_that_fits_is_not_changed() -> None:
    choice = budget.choose(text(), MADE_UP, 600)
    assert choice.recipe == text()
    assert choice.text(10, 3).startswith("10 minutes: 3 of 3 epochs of 4,000 rows, max_length 256")
    assert "forecast 6 min 45 s" in choice.text(10, 3)


@pytest.mark.parametrize("left", [300, 400, 480])
def test_fewer_steps_use_the_time_and_do_not_exceed_it(left: float) -> None:
    choice = budget.choose(text(), MADE_UP, left)
    assert 1 <= choice.epochs < 3
    assert choice.recipe.model.max_length == 256
    assert choice.recipe.training["max_steps"] == round(choice.epochs * 125)
    assert left - 2 < seconds_in_all(choice, MADE_UP, left) <= left


def test_less_than_an_epoch_shortens_texts_only_if_few_are_cut() -> None:
    choice = budget.choose(text(), MADE_UP, 180)
    assert choice.recipe.model.max_length == 128
    assert choice.epochs > 1
    many = dataclasses.replace(MADE_UP, lengths=numpy.array([40] * 2000 + [250] * 2000))
    choice = budget.choose(text(), many, 180)
    assert choice.recipe.model.max_length == 256
    assert 0.5 < choice.epochs < 1
    assert seconds_in_all(choice, many, 180) <= 180


def test_a_head_is_trained_where_2000_rows_do_not_fit() -> None:
    choice = budget.choose(text(max_steps=375), MADE_UP, 80)
    assert choice.recipe.tuning.method == "head"
    assert choice.recipe.training["learning_rate"] == 3e-3
    assert "max_steps" not in choice.recipe.training
    # A row's features take a third of its share of a step: 1 / 32 / 3 seconds.
    assert choice.recipe.data.max_train_samples == pytest.approx((80 - 30 - 8 - 10) * 96, abs=1)
    without_tokens = dataclasses.replace(MADE_UP, lengths=numpy.zeros(0, int))
    assert budget.choose(text(), without_tokens, 80).recipe.tuning.method == "full"
    random = dataclasses.replace(text().model, checkpoint="new:bert")
    scratch = dataclasses.replace(text(), model=random)
    assert budget.choose(scratch, MADE_UP, 80).recipe.tuning.method == "full"


def test_warm_up_in_steps_shrinks_with_the_steps_and_the_last_step_is_evaluated() -> None:
    counted = text(warmup_steps=100, eval_strategy="steps", eval_steps=300, save_steps=300)
    training = budget.choose(counted, MADE_UP, 300).recipe.training
    steps = training["max_steps"]
    assert training["warmup_steps"] == int(100 * steps / 375)
    assert training["eval_steps"] == training["save_steps"] == steps < 300


def test_no_time_at_all_is_an_error_with_the_minutes_that_are_needed() -> None:
    with pytest.raises(UserError, match=r"--minutes: no time is left to train.*"):
        budget.choose(text(), MADE_UP, 20)
    random = dataclasses.replace(
        text(), model=dataclasses.replace(text().model, checkpoint="new:x")
    )
    with pytest.raises(UserError, match=r"Write --minutes \d+, or more"):
        budget.choose(random, MADE_UP, 20)


@pytest.mark.parametrize(
    "flags", [[], ["--eval_strategy", "steps", "--eval_steps", "100"], ["--eval_strategy", "no"]]
)
def test_training_that_is_late_ends_with_an_evaluation(
    tiny_recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
) -> None:
    from finetune.training import runner

    ticks = iter(range(100))
    monkeypatch.setattr(runner, "TimeLimit", lambda end: TimeLimit(end, lambda: next(ticks)))
    run = train(tiny_recipe, *flags, end=3.0)
    assert run.results()["steps"] == 4
    assert run.results()["stopped_early"] is True
    evaluated = [line["step"] for line in run.history() if "eval_loss" in line]
    assert evaluated == ([] if "no" in flags else [4])
    assert "stopped at step 4 of 12: the time" in capsys.readouterr().err


def test_the_command_trains_what_fits_and_its_recipe_has_the_choice(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = measuring.measure

    def slow(read: Recipe, seconds: float) -> Forecast:
        assert seconds == pytest.approx(60)
        found = measured(read, seconds)
        assert (found.rows, found.steps_in_epoch, len(found.lengths)) == (96, 6, 96)
        value = {"value": 720.0, "low": 720.0, "high": 720.0, "n": 15}
        made_up = {"step_seconds": 60.0, "train_seconds": value, "evaluation_seconds": 0.0}
        return dataclasses.replace(found, **made_up)

    monkeypatch.setattr(measuring, "measure", slow)
    cli.main(["train", "tiny.yaml", "--minutes", "10", "--output_dir", "runs/ten"])
    assert "10 minutes: 1.33 of 2 epochs of 96 rows" in capsys.readouterr().err
    run = run_directory.Run("runs/ten")
    assert run.results()["steps"] == 8
    assert "max_steps: 8" in (run.folder / "recipe.yaml").read_text(encoding="utf-8")
    again = train(run.folder / "recipe.yaml", "--output_dir", "runs/again")
    assert again.history() == run.history()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--minutes", "0"], "above 0"),
        (["--minutes", "nan"], "above 0"),
        (["--minutes", "5", "--resume"], "is for a new run"),
    ],
)
def test_minutes_that_cannot_be_are_an_error(
    tiny_recipe: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["train", "tiny.yaml", *words])
    assert left.value.code == 2
    assert message in capsys.readouterr().err

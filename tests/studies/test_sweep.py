"""Sweeps: killed ones end like others, and no trial opens the test split."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

import optuna
import pytest
import yaml

from finetune import cli, recipe
from finetune.run_directory import Run
from finetune.studies import children, sweep
from tests.children import Ended, trained
from tests.conftest import sentences, write_csv

SEARCH = "learning_rate=loguniform(1e-4,1e-1) weight_decay=uniform(0,0.1) "
SEARCH += "label_smoothing_factor=[0,0.1]"
SHORT = ["--max_steps", "2", "--logging_steps", "2"]


class Killed(BaseException):
    """Stands for SIGKILL: nothing but finally blocks runs after it."""


def command(path: Path, folder: str, *more: str) -> list[str]:
    words = ["sweep", str(path), "--search", SEARCH, "--output_dir", folder, "--seeds", "2"]
    return [*words, *more]


def study(folder: Path | str) -> list[Any]:
    url = f"sqlite:///{Path(folder).resolve() / 'study.db'}"
    name = optuna.get_all_study_names(url)[0]
    trials = optuna.load_study(study_name=name, storage=url).get_trials()
    return [(t.number, t.params, t.state.name, t.value, t.intermediate_values) for t in trials]


@pytest.fixture
def separate(tiny_recipe: Path) -> Path:
    """A recipe whose test rows are a file of their own, which does not exist yet."""
    text = tiny_recipe.read_text(encoding="utf-8")
    text = text.replace("holdout: 24", "test: test.csv")
    tiny_recipe.write_text(text, encoding="utf-8")
    write_csv(Path("reviews.csv"), sentences(112))
    return tiny_recipe


def test_a_sweep_that_was_killed_ends_like_one_that_was_not_and_opens_no_test(
    separate: Path,
    started: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    four = ["--trials", "4", *SHORT]
    # All trials run although there is no test file; the winner needs it.
    with pytest.raises(SystemExit) as stop:
        cli.main(command(separate, "whole", *four))
    assert stop.value.code == 2
    assert "test.csv" in capsys.readouterr().err
    whole = study("whole")
    assert [state for _, _, state, _, _ in whole] == ["COMPLETE"] * 4
    results = [Run(f"whole/trials/{number:03}").results() for number in range(4)]
    assert {r["data"]["test_is"] for r in results} == {"validation"}
    assert [r["metrics"]["accuracy"]["value"] for r in results] == [v for *_, v, _ in whole]
    # The recipe's own values come first; other trials differ from each other.
    assert whole[0][1] == {"learning_rate": 2e-3, "weight_decay": 0.0, "label_smoothing_factor": 0}
    assert len({params["learning_rate"] for _, params, *_ in whole}) == 4

    calls: list[list[str]] = []

    def start(words: list[str], log: IO[bytes], threads: int | None) -> Ended:
        calls.append(words)
        if len(calls) == 2:
            raise Killed
        ended = trained(words, log)
        if len(calls) == 4:
            # Between the end of the run and the study's knowledge of it.
            raise Killed
        return ended

    monkeypatch.setattr(children, "start", start)
    for _ in range(2):
        with pytest.raises(Killed):
            cli.main(command(separate, "killed", *four))
    # Killed between two values of a trial.
    real, killed = optuna.Trial.suggest_float, []

    def suggest(self: optuna.Trial, name: str, *args: Any, **kwargs: Any) -> float:
        if self.number == 3 and name == "weight_decay" and not killed:
            killed.append(name)
            raise Killed
        return real(self, name, *args, **kwargs)

    monkeypatch.setattr(optuna.Trial, "suggest_float", suggest)
    with pytest.raises(Killed):
        cli.main(command(separate, "killed", *four))
    assert study("killed")[3][1].keys() == {"learning_rate"}
    with pytest.raises(SystemExit):
        cli.main(command(separate, "killed", *four))
    assert study("killed") == whole
    capsys.readouterr()

    write_csv(Path("test.csv"), sentences(200)[160:])
    trials = len(started)
    cli.main(command(separate, "whole", *four))
    assert study("whole") == whole
    assert [words[1] for words in calls[-2:]] == ["whole/winner.yaml"] * 2
    assert len(started) == trials
    text = Path("whole/winner.yaml").read_text(encoding="utf-8")
    best = max(whole, key=lambda trial: (trial[3], -trial[0]))
    assert yaml.safe_load(text)["base"] == "base.yaml"
    won = recipe.load("whole/winner.yaml")
    assert won.training["learning_rate"] == best[1]["learning_rate"]
    assert not won.data.untested
    assert Run("whole/winner/seed-1").results()["data"]["test"] == 40
    shown = " ".join(capsys.readouterr().out.split())
    assert "4 trials: 4 finished, 0 pruned, 0 failed" in shown
    assert "no trial has read the test split" in shown
    assert "The recipe's own values are trial 0, rank" in shown
    page = Path("whole/report.html").read_text(encoding="utf-8")
    assert "Parallel coordinates" in page

    with pytest.raises(SystemExit):
        cli.main([*command(separate, "whole", *four), "--max_length", "8"])
    assert "another model.max_length" in capsys.readouterr().err


def test_a_trial_that_breaks_has_failed_and_the_study_goes_on(
    separate: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers: list[int] = []

    def start(words: list[str], log: IO[bytes], threads: int | None) -> Ended:
        numbers.append(len(numbers))
        log.write(b"no memory\n")
        log.flush()
        return Ended(-9)

    monkeypatch.setattr(children, "start", start)
    with pytest.raises(SystemExit) as stop:
        cli.main(command(separate, "broken", "--trials", "2", *SHORT))
    assert stop.value.code == 1
    assert [state for _, _, state, _, _ in study("broken")] == ["FAIL", "FAIL"]
    assert numbers == [0, 1]
    assert "no trial has a result" in capsys.readouterr().err


def test_evaluations_that_fall_behind_end_a_trial(workdir: Path) -> None:
    found = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner())
    own = sweep.Sweep(workdir, found, {}, 9, 0, "accuracy")
    for number in range(6):
        trial, run = found.ask(), own.run(number)
        run.folder.mkdir(parents=True)
        for step, value in ((4, 0.8), (8, 0.9)):
            run.log({"step": step, "eval_accuracy": value if number < 5 else 0.1})
        assert sweep._should_prune(own, trial, "accuracy", run) == (number == 5)
        # Asked again after a kill.
        assert sweep._should_prune(own, trial, "accuracy", run) == (number == 5)
        found.tell(trial, 0.9)
    reported = found.trials[5].intermediate_values
    assert reported == {1: 0.1}
    assert found.trials[0].intermediate_values == {1: 0.8, 2: 0.9}


def test_a_trial_that_another_process_trains_is_left_alone(workdir: Path) -> None:
    found = optuna.create_study(direction="maximize")
    own = sweep.Sweep(workdir / "shared", found, {}, 2, 0, None)
    first = sweep._claim(own)
    second = sweep._claim(own)
    assert first
    assert second
    assert (first[0].number, second[0].number) == (0, 1)
    assert sweep._claim(own) is None
    first[1].close()
    again = sweep._claim(own)
    assert again
    assert again[0].number == 0
    for _, held in (second, again):
        held.close()


@pytest.mark.slow
def test_twelve_trials_killed_twice_give_the_study_of_an_undisturbed_sweep(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_csv(Path("reviews.csv"), sentences(1040))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(cli.__file__).parent.parent))

    def begin(folder: str) -> "subprocess.Popen[bytes]":
        words = command(tiny_recipe, folder, "--trials", "12")
        with Path(f"{folder}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "finetune", *words],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    assert begin("whole").wait() == 0
    for number in (3, 8):
        process = begin("killed")
        while not Path("killed", "trials", f"{number:03}", "history.jsonl").is_file():
            assert process.poll() is None, Path("killed.log").read_text(encoding="utf-8")
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert begin("killed").wait() == 0
    assert study("killed") == study("whole")
    assert [state for _, _, state, _, _ in study("whole")].count("FAIL") == 0

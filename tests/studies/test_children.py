"""Child processes: how they end, and what becomes of them when a study ends."""

import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

import pytest

from finetune.errors import TrainingError, UserError
from finetune.run_directory import Run
from finetune.studies import children


def runs_code(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    def start(words: list[str], log: IO[bytes], threads: int | None) -> "subprocess.Popen[bytes]":
        return subprocess.Popen([sys.executable, "-c", code, *words], stdout=log, stderr=log)

    monkeypatch.setattr(children, "start", start)


def test_a_mistake_that_a_child_finds_is_one_of_the_user(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_code(monkeypatch, "print('finetune: x.yaml:3: no such key'); raise SystemExit(2)")
    with children.Children() as own, pytest.raises(UserError, match=r"^x\.yaml:3: no such key$"):
        own.train(Run("runs/a"), "x.yaml", {})


def test_a_child_that_breaks_is_an_error_that_names_its_log(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_code(monkeypatch, "print('first'); print('no memory'); raise SystemExit(1)")
    match = r"ended with status 1: no memory \(runs/a\.log\)"
    with children.Children() as own, pytest.raises(TrainingError, match=match):
        own.train(Run("runs/a"), "x.yaml", {})


def test_a_child_that_has_had_enough_ends(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "POLL", 0.05)
    runs_code(monkeypatch, "import time; time.sleep(600)")
    with children.Children() as own:
        assert own.train(Run("runs/a"), "x.yaml", {}, enough=lambda: True) is None
        assert not own.running


def test_children_end_with_the_study(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "POLL", 0.05)
    runs_code(monkeypatch, "import time; time.sleep(600)")
    begun, ended = threading.Event(), []

    def train(own: children.Children) -> None:
        with pytest.raises(TrainingError, match="ended with status -15"):
            own.train(Run("runs/a"), "x.yaml", {}, enough=lambda: bool(begun.set()))
        ended.append(True)

    with children.Children() as own:
        thread = threading.Thread(target=train, args=(own,))
        thread.start()
        assert begun.wait(60)
    thread.join(60)
    assert ended == [True]
    with pytest.raises(TrainingError, match="stopped"):
        own.train(Run("runs/b"), "x.yaml", {})


def test_jobs_after_the_first_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "_cores", lambda: 8)
    threads: list[int | None] = []

    def job(given: int | None) -> dict:
        threads.append(given)
        return {"cost": {"peak_memory_bytes": 1000}}

    children.Children().each([job] * 3)
    assert threads == [None, 4, 4]
    assert children.at_once(2**60) == 1

"""Children of a study that train in the test's own process, which is faster."""

import contextlib
import io
from collections.abc import Callable
from typing import IO

import pytest

from finetune import cli
from finetune.studies import children


class Ended:
    """A child process that has ended."""

    def __init__(self, status: int) -> None:
        self.status = status

    def wait(self, timeout: float | None = None) -> int:
        return self.status

    def terminate(self) -> None:
        return


def trained(words: list[str], log: IO[bytes]) -> Ended:
    """Runs a command in this process, with its output in a log."""
    out, status = io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            cli.main(words)
        except SystemExit as stop:
            status = int(stop.code or 0)
    log.write(out.getvalue().encode())
    log.flush()
    return Ended(status)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The words of every child so far."""
    every: list[list[str]] = []

    def start(words: list[str], log: IO[bytes], threads: int | None) -> Ended:
        every.append(words)
        return trained(words, log)

    monkeypatch.setattr(children, "start", start)
    return every


Start = Callable[[list[str], IO[bytes], int | None], Ended]

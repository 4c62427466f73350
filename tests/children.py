"""Children of a study that train in the test's own process, which is faster."""

import contextlib
import io
from typing import IO

from finetune import cli


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

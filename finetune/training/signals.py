"""SIGTERM and SIGINT: heard at once, acted on when the step is done."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

HEARD = (signal.SIGTERM, signal.SIGINT)
# Seconds within which a launcher passes on a signal that its processes heard themselves.
ECHO = 5.0


class Signals:
    """While entered, a signal is kept in ``received`` if ``patient``, and else ends the process.

    Either way the status is 128 + its number: 143 for SIGTERM, 130 for SIGINT. A second signal
    stops the process at once, but not what torch's launcher passes on of the same one: a scheduler
    tells every process.
    """

    def __init__(self) -> None:
        self.received, self.since = 0, 0.0
        self.patient = False

    def __enter__(self) -> Self:
        self.before: dict[int, Any] = {number: signal.getsignal(number) for number in HEARD}
        # Python lets only the main thread set handlers; elsewhere signals end the process as ever.
        if threading.current_thread() is threading.main_thread():
            for number in HEARD:
                signal.signal(number, self._hear)
        return self

    def __exit__(self, *error: object) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self.before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        again = bool(self.received)
        if again and time.monotonic() - self.since < ECHO:
            return
        if again or "TORCHELASTIC_RUN_ID" not in os.environ:
            for each in HEARD:
                signal.signal(each, signal.SIG_DFL)
        if again:
            os.kill(os.getpid(), number)
        self.received, self.since = number, time.monotonic()
        if not self.patient:
            leave(number, "stopped")


def leave(number: int, what: str) -> None:
    """End the process for a signal, saying what became of the run.

    Raises:
        SystemExit: always.
    """
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"finetune: {signal.Signals(number).name}: {what}", file=sys.stderr, flush=True)
    raise SystemExit(128 + number)


def outlive_one(then: Callable[[int], None] | None, worker: int) -> None:
    """For a data loader's worker: the first signal is meant for the main process.

    A terminal's Ctrl-C and a scheduler's SIGTERM go to every process of the group.

    Args:
        then: what else a worker starts with.
    """

    def once(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    for number in HEARD:
        signal.signal(number, once)
    if then is not None:
        then(worker)

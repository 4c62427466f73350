"""SIGTERM and SIGINT: received at any time, acted on when the current step is done."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn, Self

HANDLED = (signal.SIGTERM, signal.SIGINT)
# A launcher passes on a signal to processes that received it themselves. Within so many seconds it
# counts as the same signal.
REPEAT_SECONDS = 5.0


class Signals:
    """Handles SIGTERM and SIGINT while entered.

    - ``deferred``: the signal is kept in ``received``. Otherwise it ends the process.
    - The exit status is 128 + its number: 143 for SIGTERM, 130 for SIGINT.
    - A second signal stops the process at once, unless torch's launcher passes on the first one.
    """

    def __init__(self) -> None:
        self.received, self.received_at = 0, 0.0
        self.deferred = False

    def __enter__(self) -> Self:
        self.previous: dict[int, Any] = {number: signal.getsignal(number) for number in HANDLED}
        # Only the main thread can set handlers; elsewhere signals keep their default action.
        if threading.current_thread() is threading.main_thread():
            for number in HANDLED:
                signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self.previous.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = bool(self.received)
        if again and time.monotonic() - self.received_at < REPEAT_SECONDS:
            return
        if again or "TORCHELASTIC_RUN_ID" not in os.environ:
            for each in HANDLED:
                signal.signal(each, signal.SIG_DFL)
        if again:
            os.kill(os.getpid(), number)
        self.received, self.received_at = number, time.monotonic()
        if not self.deferred:
            exit_for_signal(number, "stopped")


def exit_for_signal(number: int, outcome: str) -> NoReturn:
    """Exits the process because of a signal; prints what became of the run.

    Raises:
        SystemExit: always.
    """
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"finetune: {signal.Signals(number).name}: {outcome}", file=sys.stderr, flush=True)
    raise SystemExit(128 + number)


def ignore_first_signal(worker_init: Callable[[int], None] | None, worker: int) -> None:
    """Initializes a data loader's worker such that it ignores the first signal.

    A terminal's Ctrl-C and a scheduler's SIGTERM reach every process of the group, and the main
    process needs its workers until the step is done.

    Args:
        worker_init: the loader's own ``worker_init_fn``.
    """

    def ignore_once(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    for number in HANDLED:
        signal.signal(number, ignore_once)
    if worker_init is not None:
        worker_init(worker)

"""A service without a model: routes, queue and guards can be tested in milliseconds."""

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any, cast

from finetune.errors import UserError
from finetune.serving.app import DEFAULTS, create_app
from finetune.serving.generated import Generated
from finetune.serving.limits import Limits

# A prompt whose answer ends only when it is stopped.
ENDLESS = "endless"


class Stub:
    """Predicts the length of a text; ``hold`` makes it wait. Generates the words of a prompt."""

    name, engine, digest, chats = "stub", "none", "0" * 64, False
    data: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, fields: dict[str, type] | None = None, generates: bool = False) -> None:
        self.fields = {"text": str} if fields is None else fields
        self.generates = generates
        self.task = type("Task", (), {"name": "text-classification", "is_labelled": False})
        self.batches: list[int] = []
        self.threads: set[str] = set()
        self.begun = 0
        self.hold = threading.Event()
        self.hold.set()

    def predict(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self.hold.wait(30)
        self.batches.append(len(rows))
        self.threads.add(threading.current_thread().name)
        if any(row.get("text") == "wrong" for row in rows):
            raise UserError("a row is wrong")
        if any(row.get("text") == "bug" for row in rows):
            raise ZeroDivisionError
        return [{"prediction": len(next(iter(row.values())))} for row in rows]

    def generate(
        self, prompt: str, write: Callable[[str], None], stop: threading.Event, **_: Any
    ) -> Generated:
        words = 0
        self.begun += 1
        for word in itertools.repeat("on") if prompt == ENDLESS else prompt.split():
            self.hold.wait(30)
            time.sleep(0.005)
            if stop.is_set():
                return Generated(1, words, "length")
            write(word + " ")
            words += 1
        return Generated(1, words, "stop")


def app_of(stub: Stub, limits: Limits = DEFAULTS, token: str | None = None) -> Any:
    return create_app(cast(Any, stub), limits, token)

"""``POST /feedback``: the true label of an input, kept as a row for a later training.

A line of the run's feedback.jsonl has the input, ``label``, what the model answers, the time, and
the hash of the model's weights. It is a table that `finetune evaluate` and ``add_feedback`` read.
Nothing in it is ever changed; of an input that is corrected again, the newest line counts.
"""

import asyncio
import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import filelock
from fastapi import APIRouter, File, Form, UploadFile
from pydantic import BaseModel, ConfigDict, Json, create_model
from starlette.exceptions import HTTPException

from finetune.data import corrections
from finetune.errors import UserError
from finetune.serving import predicting
from finetune.serving.batching import Batcher
from finetune.serving.guards import Text
from finetune.serving.limits import Limits

if TYPE_CHECKING:
    from finetune.serving.service import Service

# A label, several labels, or a number.
Label = Text | list[Text] | float


class Kept(BaseModel):
    """What the model answers for the input now, and the file that has the correction."""

    prediction: Any
    file: str


def router(service: "Service", batcher: Batcher, limits: Limits) -> APIRouter:
    """Returns the route, which asks for the input as ``/predict`` does."""
    routes = APIRouter()

    async def keep(row: dict[str, Any], label: Label, decoded: int = 0) -> Kept:
        service.task.check_label(label, service.data)
        if service.task.is_empty(row):
            raise UserError("an empty input has no label to correct")
        (answer,) = await batcher.submit([row], decoded)
        folder = service.run.folder
        try:
            line = {**row, "label": label, **answer, "time": _now(), "model": service.digest}
            await asyncio.to_thread(append, folder, line)
        except OSError as error:
            raise HTTPException(503, f"cannot be kept: {error.strerror}") from None
        return Kept(prediction=answer["prediction"], file=str(folder / corrections.FILE))

    if bytes in service.fields.values():
        (name,) = service.fields

        @routes.post("/feedback")
        async def of_file(
            file: Annotated[UploadFile, File()], label: Annotated[Json[Label], Form()]
        ) -> Kept:
            """Keeps the true label, as JSON, of an image file."""
            row = {name: await file.read()}
            decoded = await asyncio.to_thread(predicting.decoded, [row[name]], limits.decoded)
            return await keep(row, label, decoded)

        return routes

    strict = ConfigDict(extra="forbid")
    fields: Any = {**dict.fromkeys(service.fields, (Text, ...)), "label": (Label, ...)}
    body: Any = create_model("Correction", __config__=strict, **fields)

    @routes.post("/feedback")
    async def of_text(given: body) -> Kept:  # pyright: ignore[reportInvalidTypeForm]
        """Keeps the true label of a text or a pair."""
        row = given.model_dump()
        return await keep(row, row.pop("label"))

    return routes


def append(folder: Path, row: dict[str, Any]) -> None:
    """Adds a correction to a run, on disk when this returns; several processes may do it at once.

    Args:
        row: an image in it, the bytes of a file, becomes a file named by its hash.

    Raises:
        OSError: the folder cannot be written, or is full.
    """
    with filelock.FileLock(folder / f".{corrections.FILE}.lock"):
        for name, content in row.items():
            if isinstance(content, bytes):
                row[name] = f"{corrections.IMAGES}/{hashlib.sha256(content).hexdigest()}"
                (folder / corrections.IMAGES).mkdir(exist_ok=True)
                _write(folder / row[name], content)
        line = json.dumps(row).encode() + b"\n"
        with (folder / corrections.FILE).open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                # A line that a crash cut short stays, as one that cannot be read.
                line = line if file.read() == b"\n" else b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def _write(path: Path, content: bytes) -> None:
    """Writes a file in one step: after a crash it is whole, or not there."""
    staged = path.with_suffix(".new")
    with staged.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

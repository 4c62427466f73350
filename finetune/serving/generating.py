"""Generation as a stream of pieces, and ``POST /generate``."""

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import Receive, Scope, Send

from finetune.serving.batching import Batcher, Busy
from finetune.serving.generated import Generated
from finetune.serving.guards import Text
from finetune.serving.limits import Limits
from finetune.serving.metrics import Metrics

if TYPE_CHECKING:
    from finetune.serving.service import Service

Prompt = str | list[dict[str, str]]
# More than any model has positions for; and the largest seed that torch takes for certain.
MOST_TOKENS, MOST_SEED = 1_000_000, 2**32 - 1
# The part of a request's deadline in which text is generated: what there is then is the answer.
SHARE = 0.9


@dataclass(frozen=True)
class Answers:
    """What every generation of a service needs."""

    service: "Service"
    batcher: Batcher
    limits: Limits
    metrics: Metrics

    def start(self, prompt: Prompt, options: dict[str, Any], stops: Sequence[str] = ()) -> "Answer":
        """Returns the answer to a prompt, which is generated as its pieces are asked for.

        Args:
            options: as ``Task.generate`` takes them.
            stops: texts at which the answer ends, without them.
        """
        return Answer(self, prompt, options, stops)


@dataclass
class Answer:
    """One generation; when all its pieces are taken, ``generated`` says how it ended."""

    of: Answers
    prompt: Prompt
    options: dict[str, Any]
    stops: Sequence[str]
    generated: Generated | None = None

    async def pieces(self) -> AsyncGenerator[str, None]:
        """Yields the answer piece by piece; it ends shortly before the request's deadline.

        Raises:
            Busy: too many requests wait, or waited too long.
            UserError: the prompt cannot be used.
        """
        loop, stop = asyncio.get_running_loop(), threading.Event()
        end = loop.time() + SHARE * self.of.limits.deadline
        pieces: asyncio.Queue[str | None] = asyncio.Queue()

        def put(piece: str | None) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        def work() -> Generated:
            try:
                return self.of.service.generate(self.prompt, put, stop, **self.options)
            finally:
                put(None)

        async with self.of.batcher.turn() as thread:
            if loop.time() > end:
                raise Busy
            timer = loop.call_at(end, stop.set)
            done = loop.run_in_executor(thread, work)
            try:
                held, stopped = "", False
                while not stopped and (piece := await pieces.get()) is not None:
                    sent, held, stopped = _until(held + piece, self.stops)
                    if sent:
                        yield sent
                if stopped:
                    stop.set()
                generated = await done
                if held:
                    yield held
                self.generated = replace(generated, reason="stop") if stopped else generated
                self.of.metrics.tokens.inc(generated.tokens)
            finally:
                # Also when the client is gone: the model's thread is free again after this.
                timer.cancel()
                stop.set()
                await asyncio.wait([done])

    async def text(self) -> tuple[str, Generated]:
        """Returns the whole answer, and how it ended."""
        text = "".join([piece async for piece in self.pieces()])
        assert self.generated is not None
        return text, self.generated


def _until(text: str, stops: Sequence[str]) -> tuple[str, str, bool]:
    """Splits what was generated at the first of some texts.

    Returns:
        What can be sent; what may be the beginning of a stop and has to wait; whether a stop came.
    """
    found = [place for stop in stops if (place := text.find(stop)) >= 0]
    if found:
        return text[: min(found)], "", True
    waits = max(
        (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0
    )
    return text[: len(text) - waits], text[len(text) - waits :], False


async def stream(events: AsyncGenerator[Any, None]) -> StreamingResponse:
    """Returns server-sent events; the response begins with the first, so an error has a status."""
    first = await anext(events)

    async def lines() -> AsyncGenerator[str, None]:
        async with aclosing(events):
            yield _event(first)
            async for event in events:
                yield _event(event)

    return _Stream(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


class _Stream(StreamingResponse):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ends the generation when the client is gone, and not when its garbage is collected."""
        iterator: Any = self.body_iterator
        async with aclosing(iterator):
            await super().__call__(scope, receive, send)


def _event(data: Any) -> str:
    return f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n"


class Wanted(BaseModel):
    """A prompt, and the options of `finetune generate`."""

    model_config = ConfigDict(extra="forbid")
    prompt: Text = Field(min_length=1)
    max_new_tokens: int = Field(60, ge=1, le=MOST_TOKENS)
    seed: int = Field(0, ge=0, le=MOST_SEED)
    greedy: bool = False


def router(answers: Answers) -> APIRouter:
    """Returns the route."""
    routes = APIRouter()

    @routes.post("/generate", response_class=StreamingResponse)
    async def generate(given: Wanted) -> StreamingResponse:
        """Streams what the model generates: ``{"text": …}``, and last how it ended.

        For a model of chats, the prompt is a question.
        """
        options = given.model_dump(exclude={"prompt", "greedy"})
        options["do_sample"] = not given.greedy
        answer = answers.start(given.prompt, options)

        async def events() -> AsyncGenerator[Any, None]:
            async with aclosing(answer.pieces()) as pieces:
                async for piece in pieces:
                    yield {"text": piece}
            assert answer.generated is not None
            yield asdict(answer.generated)

        return await stream(events())

    return routes

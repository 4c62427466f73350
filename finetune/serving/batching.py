"""Dynamic batching: requests that arrive together share a forward pass.

The model runs in one thread. While it does, requests queue up, and the next batch takes as many as
fit; an idle model waits a few milliseconds for a second request.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from finetune.errors import UserError
from finetune.serving.limits import Limits

Row = dict[str, Any]


class Busy(Exception):  # noqa: N818 - no error, but the state of the queue
    """The queue is full."""


@dataclass
class _Request:
    rows: list[Row]
    decoded: int
    answers: asyncio.Future[list[Row]]


class Batcher:
    """A queue in front of a model.

    Args:
        answer: rows (N) -> answers (N), called in the model's thread. It may raise ``UserError``
            for a row.
        observe: called with the number of rows of each batch.
    """

    def __init__(
        self,
        answer: Callable[[list[Row]], list[Row]],
        limits: Limits,
        observe: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self.answer, self.limits, self.observe = answer, limits, observe
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self.requests: asyncio.Queue[_Request] = asyncio.Queue()
        self.model = asyncio.Lock()
        # Requests that wait, rows without an answer, and the seconds that a row of a batch takes.
        self.waiting, self.rows, self.pace = 0, 0, 0.0

    @property
    def is_full(self) -> bool:
        """Whether the next request would be refused."""
        late = self.rows * self.pace > self.limits.patience
        return self.waiting >= self.limits.queued or (late and self.rows >= self.limits.rows)

    async def submit(self, rows: list[Row], decoded: int = 0) -> list[Row]:
        """Returns the answers to a request's rows.

        Args:
            decoded: bytes of the rows' images once they are decoded.

        Raises:
            Busy: too many requests wait.
            UserError: one of these rows cannot be answered.
        """
        if self.is_full:
            raise Busy
        future = asyncio.get_running_loop().create_future()
        self.waiting += 1
        self.rows += len(rows)
        self.requests.put_nowait(_Request(rows, decoded, future))
        try:
            return await future
        finally:
            self.rows -= len(rows)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[ThreadPoolExecutor]:
        """Waits in the same queue for the model's thread, and keeps it for the block.

        Raises:
            Busy: too many requests wait.
        """
        if self.is_full:
            raise Busy
        self.waiting += 1
        try:
            await self.model.acquire()
        finally:
            self.waiting -= 1
        try:
            yield self.thread
        finally:
            self.model.release()

    async def run(self) -> None:
        """Answers requests until it is cancelled."""
        held: _Request | None = None
        while True:
            batch, held = await self._collect(held or await self._next())
            async with self.model:
                await self._answer([request for request in batch if not request.answers.done()])

    async def _next(self) -> _Request:
        request = await self.requests.get()
        self.waiting -= 1
        return request

    async def _collect(self, first: _Request) -> tuple[list[_Request], _Request | None]:
        """Returns a batch that starts with a request, and the request that no longer fits in."""
        batch, rows, decoded = [first], len(first.rows), first.decoded
        try:
            async with asyncio.timeout(self.limits.wait):
                while rows < self.limits.rows:
                    request = await self._next()
                    rows, decoded = rows + len(request.rows), decoded + request.decoded
                    if rows > self.limits.rows or decoded > self.limits.decoded:
                        return batch, request
                    batch.append(request)
        except TimeoutError:
            pass
        return batch, None

    async def _answer(self, batch: list[_Request]) -> None:
        """Answers a batch; where a row of it cannot be answered, each request by itself."""
        rows = [row for request in batch for row in request.rows]
        if not rows:
            return
        self.observe(len(rows))
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            answers = await loop.run_in_executor(self.thread, self.answer, rows)
        except Exception as error:
            if len(batch) == 1:
                _settle(batch[0], error)
            elif isinstance(error, UserError):
                for request in batch:
                    await self._answer([request])
            else:
                for request in batch:
                    _settle(request, error)
            return
        # A mean in which older batches count less and less.
        self.pace += ((loop.time() - start) / len(rows) - self.pace) / 4
        for request in batch:
            own, answers = answers[: len(request.rows)], answers[len(request.rows) :]
            _settle(request, own)


def _settle(request: _Request, outcome: list[Row] | Exception) -> None:
    """Wakes up a request, unless its client has given up."""
    if request.answers.done():
        return
    if isinstance(outcome, Exception):
        request.answers.set_exception(outcome)
    else:
        request.answers.set_result(outcome)

"""Dynamic batching: who shares a forward pass, who is refused, who gets which error."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from finetune.errors import UserError
from finetune.serving.batching import Batcher, Busy
from finetune.serving.limits import Limits
from tests.serving.stub import Stub

Rows = list[dict[str, Any]]


def rows(*texts: str) -> Rows:
    return [{"text": text} for text in texts]


def run(stub: Stub, limits: Limits, act: Callable[[Batcher], Awaitable[Any]]) -> Any:
    """What ``act`` returns while a batcher of the stub runs."""

    async def whole() -> Any:
        batcher = Batcher(stub.predict, limits)
        running = asyncio.create_task(batcher.run())
        try:
            return await act(batcher)
        finally:
            stub.hold.set()
            running.cancel()
            batcher.thread.shutdown()

    return asyncio.run(whole())


def test_requests_share_a_forward_pass_and_each_gets_its_own_answers() -> None:
    async def act(batcher: Batcher) -> Any:
        asked = [rows("a" * i, "b" * (i + 1)) for i in range(12)]
        return await asyncio.gather(*(batcher.submit(each) for each in asked))

    stub = Stub()
    answers = run(stub, Limits(wait=0.2, rows=8), act)
    assert [[row["prediction"] for row in own] for own in answers] == [
        [i, i + 1] for i in range(12)
    ]
    assert stub.batches == [8, 8, 8]
    assert stub.threads == {"model_0"}


def test_a_request_that_does_not_fit_waits_for_the_next_batch() -> None:
    async def act(batcher: Batcher) -> Any:
        asked = [rows("a"), rows("a", "b", "c"), rows("a", "b")]
        return await asyncio.gather(*(batcher.submit(each) for each in asked))

    stub = Stub()
    run(stub, Limits(wait=0.2, rows=3), act)
    assert stub.batches == [1, 3, 2]


def test_a_batch_holds_no_more_pixels_than_allowed() -> None:
    async def act(batcher: Batcher) -> Any:
        return await asyncio.gather(*(batcher.submit(rows("a"), 60) for _ in range(4)))

    stub = Stub()
    run(stub, Limits(wait=0.2, decoded=120), act)
    assert stub.batches == [2, 2]


@pytest.mark.parametrize(("text", "kind"), [("wrong", UserError), ("bug", ZeroDivisionError)])
def test_an_error_reaches_who_caused_it(text: str, kind: type[Exception]) -> None:
    async def act(batcher: Batcher) -> Any:
        asked = [batcher.submit(rows(each)) for each in ("good", text, "fine")]
        first = await asyncio.gather(*asked, return_exceptions=True)
        return first, await batcher.submit(rows("later"))

    stub = Stub()
    (good, wrong, fine), later = run(stub, Limits(wait=0.2), act)
    assert isinstance(wrong, kind)
    assert later == [{"prediction": 5}]
    if kind is UserError:
        assert (good, fine) == ([{"prediction": 4}], [{"prediction": 4}])


def test_a_full_queue_refuses_and_a_client_that_gives_up_is_not_answered() -> None:
    async def act(batcher: Batcher) -> Any:
        stub.hold.clear()
        first = asyncio.create_task(batcher.submit(rows("first")))
        await asyncio.sleep(0.05)
        waiting = [asyncio.create_task(batcher.submit(rows(text))) for text in ("gone", "kept")]
        await asyncio.sleep(0)
        assert batcher.is_full
        with pytest.raises(Busy):
            await batcher.submit(rows("late"))
        with pytest.raises(Busy):
            async with batcher.turn():
                pass
        waiting[0].cancel()
        stub.hold.set()
        return await first, await waiting[1], batcher.is_full

    stub = Stub()
    first, kept, is_full = run(stub, Limits(queued=2), act)
    assert (first, kept, is_full) == ([{"prediction": 5}], [{"prediction": 4}], False)
    assert stub.batches == [1, 1]


def test_a_slow_model_refuses_what_would_wait_for_long_but_not_a_batch() -> None:
    async def act(batcher: Batcher) -> Any:
        stub.hold.clear()
        asked = [asyncio.create_task(batcher.submit(rows("slow")))]
        await asyncio.sleep(0.2)
        stub.hold.set()
        await asked[0]
        stub.hold.clear()
        seen = []
        for text in ("a", "b"):
            seen.append(batcher.is_full)
            asked.append(asyncio.create_task(batcher.submit(rows(text))))
            await asyncio.sleep(0)
        seen.append(batcher.is_full)
        stub.hold.set()
        await asyncio.gather(*asked)
        return [*seen, batcher.is_full]

    stub = Stub()
    # A row took 0.2 seconds, of which a quarter counts so far.
    assert run(stub, Limits(rows=2, patience=0.08), act) == [False, False, True, False]
    assert run(stub, Limits(rows=3, patience=0.08), act) == [False] * 4


def test_a_turn_has_the_model_alone() -> None:
    async def act(batcher: Batcher) -> Any:
        async with batcher.turn():
            asked = asyncio.create_task(batcher.submit(rows("a")))
            await asyncio.sleep(0.05)
            before = list(stub.batches)
        return before, await asked

    stub = Stub()
    assert run(stub, Limits(), act) == ([], [{"prediction": 1}])

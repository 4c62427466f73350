"""Generated text: streamed, ended by stops and limits, and as OpenAI's clients ask for it."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from starlette.requests import ClientDisconnect
from starlette.testclient import TestClient

from finetune import inference
from finetune.run_directory import Run
from finetune.serving.generating import _until, stream
from finetune.serving.limits import Limits
from tests.serving.conftest import LOOPBACK
from tests.serving.stub import ENDLESS, Stub, app_of

QUESTION = {"role": "user", "content": "the film"}


def events(text: str) -> list[Any]:
    """The data of server-sent events; the last of OpenAI's is no JSON."""
    parts = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [json.loads(part) if part != "[DONE]" else part for part in parts]


def test_a_stream_has_the_words_of_finetune_generate(
    writer: Run, serve: Callable[..., TestClient], capsys: pytest.CaptureFixture[str]
) -> None:
    inference.generate(writer, "the film", 3, 12, False)
    printed = capsys.readouterr().out
    asked = {"prompt": "the film", "seed": 3, "max_new_tokens": 12}
    answer = serve(writer).post("/generate", json=asked)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *pieces, ended = events(answer.text)
    assert "the film" + "".join(piece["text"] for piece in pieces) == printed.removesuffix("\n")
    assert ended == {"prompt_tokens": 8, "tokens": 12, "reason": "length"}


def test_completions_streamed_and_not_are_the_same(
    writer: Run, chatter: Run, serve: Callable[..., TestClient]
) -> None:
    for run, path, asked in [
        (writer, "/v1/completions", {"prompt": "the film"}),
        (chatter, "/v1/chat/completions", {"messages": [QUESTION]}),
    ]:
        client = serve(run)
        asked |= {"seed": 1, "max_tokens": 20, "model": "any"}
        whole = client.post(path, json=asked).json()
        options = {"stream": True, "stream_options": {"include_usage": True}}
        *chunks, usage, done = events(client.post(path, json=asked | options).text)
        assert done == "[DONE]"
        assert usage["usage"] == whole["usage"]
        assert whole["usage"]["completion_tokens"] <= 20
        choices = [chunk["choices"][0] for chunk in chunks]
        assert choices[-1]["finish_reason"] == whole["choices"][0]["finish_reason"]
        first = whole["choices"][0]
        if run is chatter:
            assert choices[0]["delta"]["role"] == first["message"]["role"] == "assistant"
            pieces = [choice["delta"].get("content", "") for choice in choices]
            assert "".join(pieces) == first["message"]["content"]
        else:
            assert "".join(choice["text"] for choice in choices) == first["text"]
        assert client.get("/v1/models").json()["data"][0]["id"] == whole["model"]


def test_an_answer_ends_before_a_stop(writer: Run, serve: Callable[..., TestClient]) -> None:
    client, asked = serve(writer), {"prompt": "the film", "seed": 1, "max_tokens": 40}
    whole = client.post("/v1/completions", json=asked).json()["choices"][0]["text"]
    stop = whole[5:7]
    cut = client.post("/v1/completions", json=asked | {"stop": [stop, "not there"]}).json()
    assert cut["choices"][0]["text"] == whole.partition(stop)[0]
    assert cut["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("text", "sent", "held", "ended"),
    [
        ("abc", "abc", "", False),
        ("ab#", "ab", "#", False),
        ("ab##c", "ab", "", True),
        ("ab", "ab", "", False),
        ("#EN", "", "#EN", False),
    ],
)
def test_what_may_begin_a_stop_waits(text: str, sent: str, held: str, ended: bool) -> None:
    assert _until(text, ["##", "#END"]) == (sent, held, ended)


def test_an_answer_ends_before_its_deadline() -> None:
    with TestClient(app_of(Stub({}, generates=True), Limits(deadline=3.0)), LOOPBACK) as client:
        asked = {"prompt": ENDLESS, "stream": True}
        *chunks, done = events(client.post("/v1/completions", json=asked).text)
    assert done == "[DONE]"
    assert len(chunks) > 2
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"n": 2}, "n: "),
        ({"tools": []}, "tools: Extra inputs are not permitted"),
        ({"temperature": 3}, "temperature: "),
        ({"frequency_penalty": 0.5}, "frequency_penalty: "),
        ({"stop": "a" * 101}, "stop"),
        ({"messages": []}, "messages: "),
        ({"messages": [{"role": "tool", "content": "1"}]}, "role: "),
        ({"messages": [QUESTION | {"content": "a" * 200}]}, "as many as the model has positions"),
    ],
)
def test_what_cannot_be_done_is_an_error(
    chatter: Run, serve: Callable[..., TestClient], change: dict, wrong: str
) -> None:
    for streamed in (False, True):
        asked = {"messages": [QUESTION], "stream": streamed, **change}
        answer = serve(chatter).post("/v1/chat/completions", json=asked)
        assert answer.status_code == 422
        assert wrong in answer.json()["error"]["message"]


def test_a_model_of_texts_knows_no_chats(writer: Run, serve: Callable[..., TestClient]) -> None:
    client = serve(writer)
    answer = client.post("/v1/chat/completions", json={"messages": [QUESTION]})
    assert answer.status_code == 422
    assert "knows no chats" in answer.json()["error"]["message"]
    assert client.post("/predict", json={"inputs": ["a text"]}).status_code == 404


def test_a_client_that_leaves_a_stream_frees_the_model() -> None:
    async def whole() -> tuple[bool, int]:
        app = app_of(Stub({}, generates=True), Limits(deadline=60))
        async with app.router.lifespan_context(app):
            begun = asyncio.Event()
            leaving = asyncio.create_task(request(app, {"prompt": ENDLESS}, begun))
            await begun.wait()
            leaving.cancel()
            await asyncio.wait([leaving])
            asked = request(app, {"prompt": "one two"}, asyncio.Event())
            return leaving.cancelled(), len(await asyncio.wait_for(asked, 20))

    # A head, two words, how it ended, and the end.
    assert asyncio.run(whole()) == (True, 5)


def test_events_end_with_their_response() -> None:
    async def whole() -> list[str]:
        ended = []

        async def events() -> AsyncGenerator[str, None]:
            try:
                while True:
                    yield "on"
            finally:
                ended.append("ended")

        async def receive() -> Any:
            await asyncio.sleep(3600)

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                raise OSError

        # Held here, so that it is not ended by the garbage collector.
        made = events()
        response = await stream(made)
        scope: Any = {"type": "http", "asgi": {"spec_version": "2.4"}}
        with pytest.raises(ClientDisconnect):
            await response(scope, receive, send)
        # The event loop ends what is left when it closes.
        return list(ended)

    assert asyncio.run(whole()) == ["ended"]


async def request(app: Any, body: dict[str, Any], begun: asyncio.Event) -> list[Any]:
    """The messages that answer a POST to /generate; ``begun`` is set with the first text."""
    sent: list[Any] = []
    come = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> Any:
        if not come:
            await asyncio.sleep(3600)
        return come.pop()

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            begun.set()

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/generate", "query_string": b""}
    scope |= {"root_path": "", "scheme": "http", "http_version": "1.1", "headers": headers}
    await app(scope, receive, send)
    return sent

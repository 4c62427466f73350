"""The process: what SIGTERM lets finish, and connections that begin no request."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest

from finetune import cli
from finetune.run_directory import Run
from finetune.serving import server
from finetune.serving.limits import Limits
from tests.serving.stub import ENDLESS, Stub, app_of

HOST = "127.0.0.1"


def request(text: str) -> bytes:
    return post("/predict", {"inputs": [text]})


def post(path: str, given: Any) -> bytes:
    body = json.dumps(given)
    head = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def connect(port: int) -> socket.socket:
    return socket.create_connection((HOST, port), 60)


def rest(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def test_sigterm_answers_what_was_accepted(texts: Run) -> None:
    words = [sys.executable, "-m", "finetune", "serve", str(texts), "--port", "0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    opened = ExitStack()
    try:
        assert process.stdout is not None
        first, second = process.stdout.readline(), process.stdout.readline()
        assert "computed by torch" in first
        port = int(second.rpartition(":")[2])
        half, idle = (opened.enter_context(connect(port)) for _ in range(2))
        half.sendall(request("the film was good")[:-10])
        with connect(port) as asked:
            asked.sendall(f"GET /health HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            seen = b""
            while b'"status":"ok"' not in seen:
                seen += (part := asked.recv(65536))
                assert part, seen
        whole = [opened.enter_context(connect(port)) for _ in range(30)]
        for connection in whole:
            connection.sendall(request("a poor plot"))
        process.send_signal(signal.SIGTERM)
        half.sendall(request("the film was good")[-10:])
        for connection in (half, *whole):
            answer = rest(connection)
            assert answer.startswith(b"HTTP/1.1 200 OK")
            assert b"probabilities" in answer
        assert rest(idle) == b""
        assert process.wait(60) == -signal.SIGTERM
        with pytest.raises(ConnectionRefusedError):
            connect(port)
    finally:
        opened.close()
        process.kill()
        process.communicate()


@asynccontextmanager
async def serving(stub: Stub, limits: Limits) -> AsyncIterator[int]:
    """A server in this event loop; its port."""
    running = server.Server(server.configured(app_of(stub, limits), limits))
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        ended = asyncio.create_task(running.serve([taken]))
        while not running.started:
            await asyncio.sleep(0.01)
        yield taken.getsockname()[1]
        running.should_exit = True
        await ended


def test_a_connection_that_begins_no_request_is_closed() -> None:
    async def whole() -> list[bytes]:
        async with serving(Stub(), Limits(deadline=0.3)) as port:
            # Half a head; half a body; a body that is sent on after it was refused.
            large = request("a").replace(b"Content-Length: 17", b"Content-Length: 9000000")
            parts = (b"POST /pre", request("a")[:-5], large, request("a"))
            return [await asked(port, part) for part in parts]

    head, body, refused, answered = asyncio.run(whole())
    assert head == b""
    assert body.startswith(b"HTTP/1.1 408 ")
    assert refused.startswith(b"HTTP/1.1 413 ")
    assert answered.startswith(b"HTTP/1.1 200 ")


def test_a_client_that_leaves_frees_the_model() -> None:
    """Of one answer nothing was sent yet, and another waits for its turn."""
    stub = Stub({}, generates=True)

    async def whole() -> bytes:
        async with serving(stub, Limits(deadline=600)) as port:
            for path in ("/v1/completions", "/generate"):
                _, writer = await asyncio.open_connection(HOST, port)
                writer.write(post(path, {"prompt": ENDLESS}))
                while not stub.begun:
                    await asyncio.sleep(0.01)
                writer.close()
            last = post("/v1/completions", {"prompt": "one two"})
            return await asked(port, last.replace(b"Host", b"Connection: close\r\nHost", 1))

    assert asyncio.run(whole()).startswith(b"HTTP/1.1 200 ")


async def asked(port: int, given: bytes) -> bytes:
    """What comes back for some bytes until the server closes the connection."""
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(given)
    found = await asyncio.wait_for(reader.read(), 60)
    writer.close()
    return found


def refusal(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(["serve", *map(str, words)])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_what_cannot_be_served_is_one_line(texts: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert "add --token TOKEN" in refusal(capsys, texts, "--host", "0.0.0.0")
    assert "no such run directory" in refusal(capsys, "nowhere")
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"--port {port}" in refusal(capsys, texts, "--port", port)
    assert "--port 99999: is no port" in refusal(capsys, texts, "--port", 99999)
    assert "above 0" in refusal(capsys, texts, "--deadline", "nan")

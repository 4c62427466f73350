"""Whatever a client sends, the answer is no error of the service, and it keeps no memory of it."""

import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from psutil import Process
from starlette.testclient import TestClient

from finetune.run_directory import Run
from finetune.serving.app import DEFAULTS, create_app
from tests.serving.conftest import LOOPBACK

PATHS = ["/predict", "/feedback", "/generate", "/v1/completions", "/v1/chat/completions"]
OTHERS = ["/", "/health", "/metrics", "/openapi.json", "/v1/models", "/%00", "/../x", "/é"]
WORDS = ["inputs", "text", "prompt", "messages", "role", "content", "user", "max_tokens", "seed"]
WORDS += ["temperature", "top_p", "stop", "stream", "model", "stream_options", "n", "greedy"]


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes) -> bytes:
    """A PNG file that says it has that size, and whose pixels are missing."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join([chunk(b"IHDR", head), *more, chunk(b"IEND", b"")])


def encoded(size: tuple[int, int], kind: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size).save(stream, kind)
    return stream.getvalue()


# Small files that become large, broken ones, and two that can be used.
FILES = [
    encoded((5000, 4000), "PNG"),
    encoded((8000, 4900), "GIF"),
    encoded((6000, 6000), "WEBP"),
    png(2**31 - 1, 2**31 - 1),
    png(50_000, 50_000, chunk(b"IDAT", zlib.compress(bytes(1 << 22)))),
    png(4, 4, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 25)))),
    png(0, 0),
    encoded((9, 9), "PNG")[:-20],
    encoded((9, 9), "TIFF")[:60],
    b"",
    b"GIF89a",
    encoded((9, 9), "PNG"),
    encoded((64, 48), "JPEG"),
]
NUMBERS = ["1e400", "-1e400", "NaN", "Infinity", "9" * 5000, "1" * 30, "-0", "1E-999", "0.5"]

texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from([*WORDS, "\0", "the film was good", "a" * 5000, "", "\ufeff", "💥" * 50]),
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(WORDS) | texts, inner, max_size=4)
    ),
    max_leaves=8,
)
# Nearly right: the fields of a route with values of any kind.
nearly = st.fixed_dictionaries(
    {},
    optional={
        "inputs": st.lists(texts | values, max_size=40) | values,
        "prompt": texts | values,
        "messages": st.lists(
            st.fixed_dictionaries(
                {"role": st.sampled_from(["user", "system", "tool", ""]), "content": texts | values}
            ),
            max_size=3,
        )
        | values,
        "max_tokens": st.integers(-1, 5) | values,
        "max_new_tokens": st.integers(-1, 5) | values,
        "temperature": st.floats(-1, 3) | values,
        "seed": st.integers(-1, 2**70),
        "stop": values,
        "stream": st.booleans() | values,
    },
)
documents = st.one_of(
    (nearly | values).map(lambda value: json.dumps(value).encode()),
    # Escapes of half a surrogate pair, wherever a text is.
    nearly.map(lambda value: json.dumps(value).replace("film", "\\ud83d").encode()),
    st.builds(
        lambda key, number: f'{{"{key}": {number}}}'.encode(),
        st.sampled_from(WORDS),
        st.sampled_from(NUMBERS),
    ),
    st.builds(
        lambda opening, count: (opening * count).encode(),
        st.sampled_from(["[", '{"inputs":', '{"a":[']),
        st.integers(1, 50_000),
    ),
    st.builds(
        lambda opening, count: opening + b"a" * count,
        st.sampled_from([b"", b'{"inputs": ["', b'{"prompt": "']),
        st.sampled_from([999_000, 1_000_000, 1_000_001, 2_000_000]),
    ),
    st.binary(max_size=200),
)


@st.composite
def multipart(draw: st.DrawFn) -> tuple[bytes, str]:
    """The body and content type of a form with files."""
    body = b""
    for _ in range(draw(st.integers(0, 3) | st.just(40))):
        name = draw(st.sampled_from(["files", "files", "files", "file", "\0", "é"]))
        head = f'--x\r\nContent-Disposition: form-data; name="{name}"'
        head += draw(st.sampled_from(['; filename="a.png"', "", '; filename="../../a"']))
        file = draw(st.sampled_from(FILES) | st.binary(max_size=100))
        body += head.encode() + b"\r\n\r\n" + file + b"\r\n"
    ending = draw(st.sampled_from([b"--x--\r\n", b"", b"--x", b"--y--"]))
    return body + ending, draw(st.sampled_from(["multipart/form-data; boundary=x"] * 5 + ["a/b"]))


bodies = st.one_of(
    documents.map(lambda body: (body, "application/json")),
    documents.map(lambda body: (body, "application/json")),
    multipart(),
    st.tuples(
        documents,
        st.sampled_from(
            ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "\xff;"]
        ),
    ),
)
requests = st.tuples(
    st.sampled_from(["POST"] * 8 + ["GET", "PUT", "HEAD", "OPTIONS"]),
    st.sampled_from(PATHS * 4 + OTHERS),
    bodies,
    st.integers(0, 2),
)


@pytest.fixture(scope="module")
def clients(texts: Run, images: Run, chatter: Run) -> Iterator[list[TestClient]]:
    """Clients of services of texts, images and chats."""
    from finetune.serving.service import Service

    with ExitStack() as stack:
        yield [
            stack.enter_context(TestClient(create_app(Service(run)), LOOPBACK))
            for run in (texts, images, chatter)
        ]


def fuzz(clients: Sequence[httpx2.Client], count: int, seeded: bool) -> set[int]:
    """Sends so many requests; returns the statuses of their answers."""
    seen: set[int] = set()

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=seeded,
        suppress_health_check=list(HealthCheck),  # pyright: ignore[reportArgumentType]
    )
    @given(requests)
    def send(made: tuple[str, str, tuple[bytes, str], int]) -> None:
        method, path, (body, kind), which = made
        headers = {b"Content-Type": kind.encode("latin-1")} if kind else {}
        given: Any = {"content": body, "headers": headers}
        try:
            answer = clients[which].request(method, path, **given)
        except httpx2.TransportError:
            # Refused and closed before all of it was sent.
            assert len(body) > DEFAULTS.body
            return
        assert answer.status_code < 500, answer.text
        seen.add(answer.status_code)

    send()
    return seen


def test_no_request_is_answered_with_an_error_of_the_service(clients: list[TestClient]) -> None:
    assert {400, 404, 405, 413, 422} <= fuzz(clients, 200, seeded=True)


@pytest.fixture
def served(texts: Run, images: Run, chatter: Run) -> Iterator[list[tuple[httpx2.Client, Process]]]:
    """The same services as processes, so that their memory is theirs alone."""
    with ExitStack() as stack:
        found = []
        for run in (texts, images, chatter):
            words = [sys.executable, "-m", "finetune", "serve", str(run), "--port", "0"]
            started = stack.enter_context(
                subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
            )
            stack.callback(started.terminate)
            assert started.stdout is not None
            line = next(line for line in started.stdout if "http://" in line)
            client = httpx2.Client(base_url=line.split()[-1], timeout=60, trust_env=False)
            found.append((stack.enter_context(client), Process(started.pid)))
        yield found


@pytest.mark.slow
def test_many_requests_leave_no_memory_behind(
    served: list[tuple[httpx2.Client, Process]],
) -> None:
    clients, processes = zip(*served, strict=True)
    used = []
    # Of the images that are small enough, the largest is decoded now.
    for file in FILES:
        assert clients[1].post("/predict", files=[("files", ("a", file))]).status_code in (200, 422)
    for _ in range(10):
        fuzz(clients, 2_000, seeded=False)
        used.append([process.memory_info().rss for process in processes])
        print([size >> 20 for size in used[-1]], "MiB")
    for before, after in zip(used[0], used[-1], strict=True):
        assert after <= 1.05 * before


@pytest.mark.parametrize("file", FILES[:6], ids=range(6))
def test_a_large_image_is_refused_before_it_is_decoded(
    clients: list[TestClient], file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.data import image_decoding

    def decode(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(image_decoding, "_opened", decode)
    files = [("files", ("a", file))] * (2 if file is FILES[0] else 1)
    answer = clients[1].post("/predict", files=files)
    assert answer.status_code == 422
    print(answer.json()["error"]["message"])

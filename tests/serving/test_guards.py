"""What a request has to pass: address, token, size, deadline, room in the queue."""

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.testclient import TestClient

from finetune.errors import UserError
from finetune.serving import server
from finetune.serving.limits import Limits
from tests.serving.conftest import LOOPBACK
from tests.serving.stub import Stub, app_of

TOKEN = "a-long-token"
BODY = {"inputs": ["abc"]}


@contextmanager
def client(*arguments: Any, url: str = LOOPBACK, **options: Any) -> Iterator[TestClient]:
    with TestClient(app_of(*arguments), url, **options) as found:
        yield found


@pytest.mark.parametrize(
    ("host", "token", "wrong"),
    [
        ("127.0.0.1", None, None),
        ("::1", None, None),
        ("localhost", None, None),
        ("0.0.0.0", None, "--token"),
        ("::", None, "--token"),
        ("192.168.0.7", None, "--token"),
        ("example.org", None, "--token"),
        ("127.8.8.8", None, "--token"),
        ("", None, "--token"),
        ("0.0.0.0", TOKEN, None),
        ("0.0.0.0", " ", "is empty"),
        ("0.0.0.0", "", "is empty"),
    ],
)
def test_another_address_needs_a_token(host: str, token: str | None, wrong: str | None) -> None:
    if wrong is None:
        server.check_address(host, token)
        return
    with pytest.raises(UserError, match=wrong):
        server.check_address(host, token)


def test_without_a_token_only_loopback_names_are_answered() -> None:
    for url in (LOOPBACK, "http://localhost:8000", "http://[::1]:8000"):
        with client(Stub(), url=url) as asked:
            assert asked.post("/predict", json=BODY).status_code == 200, url
    # A page whose name was made to resolve to 127.0.0.1.
    with client(Stub(), url="http://rebound.example:8000") as asked:
        assert asked.post("/predict", json=BODY).status_code == 400
        assert asked.get("/health").status_code == 400


def test_a_token_is_asked_for_on_all_routes_but_health() -> None:
    password = base64.b64encode(f"any:{TOKEN}".encode()).decode()
    with client(Stub(), Limits(), TOKEN, url="http://example.org") as asked:
        assert asked.get("/health").status_code == 200
        for path in ("/", "/metrics", "/openapi.json", "/nothing", "//health", "/health/"):
            answer = asked.get(path)
            assert answer.status_code == 401, path
            assert answer.headers["WWW-Authenticate"].startswith("Basic ")
        for given in ("", TOKEN, "Bearer", "Bearer wrong", "Bearer \xff", "Basic !", "Basic YQ=="):
            headers = {b"Authorization": given.encode("latin-1")}
            assert asked.post("/predict", json=BODY, headers=headers).status_code == 401, given
        for given in (f"Bearer {TOKEN}", f"bearer {TOKEN}", f"Basic {password}"):
            answer = asked.post("/predict", json=BODY, headers={"Authorization": given})
            assert answer.status_code == 200, given


def test_a_page_of_another_site_may_not_ask() -> None:
    with client(Stub()) as asked:
        for site, status in (("cross-site", 403), ("same-origin", 200), ("none", 200)):
            answer = asked.post("/predict", json=BODY, headers={"Sec-Fetch-Site": site})
            assert answer.status_code == status
            assert "access-control-allow-origin" not in answer.headers


def test_a_large_body_is_not_read_to_its_end() -> None:
    read = []

    def chunks() -> Iterator[bytes]:
        for i in range(100):
            read.append(i)
            yield b" " * 1000

    with client(Stub(), Limits(body=10_000)) as asked:
        json_type = {"Content-Type": "application/json"}
        # No Content-Length tells its size.
        answer = asked.post("/predict", content=chunks(), headers=json_type)
        assert answer.status_code == 413
        whole = json.dumps({"inputs": ["a" * 9_900]})
        assert asked.post("/predict", content=whole, headers=json_type).status_code == 200
        assert asked.post("/predict", content=whole + " " * 101, headers=json_type).is_error


def test_a_full_queue_answers_at_once_and_says_when_to_come_back() -> None:
    stub = Stub()

    async def whole() -> list[tuple[int, dict[str, str]]]:
        app = app_of(stub, Limits(queued=1))
        async with app.router.lifespan_context(app):
            stub.hold.clear()
            asked = [asyncio.create_task(post(app, BODY))]
            await asyncio.sleep(0.1)
            asked += [asyncio.create_task(post(app, BODY)) for _ in range(2)]
            await asyncio.sleep(0.1)
            # Of this body nothing is read.
            refused = await post(app, BODY, never=True)
            stub.hold.set()
            return [*await asyncio.gather(*asked), refused]

    (first, _), (second, _), (third, late), (refused, _) = asyncio.run(whole())
    assert (first, second, third, refused) == (200, 200, 429, 429)
    assert late["retry-after"] == "1"


async def post(app: Any, body: Any, never: bool = False) -> tuple[int, dict[str, str]]:
    """Status and headers of a POST to /predict, whose body ``never`` comes."""
    sent: list[Any] = []
    content = json.dumps(body).encode()
    come = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> Any:
        if never or not come:
            await asyncio.sleep(3600)
        return come.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "raw_path": b"/predict",
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 1),
        "headers": [(b"host", b"127.0.0.1:8000"), (b"content-type", b"application/json")],
    }
    await app(scope, receive, send)
    return sent[0]["status"], {k.decode(): v.decode() for k, v in sent[0]["headers"]}


def test_a_request_ends_at_its_deadline() -> None:
    stub = Stub()

    async def whole() -> tuple[int, int, list[int]]:
        app = app_of(stub, Limits(deadline=0.2))
        async with app.router.lifespan_context(app):
            slow, _ = await post(app, BODY, never=True)
            stub.hold.clear()
            late, _ = await post(app, BODY)
            stub.hold.set()
            return slow, late, stub.batches

    start = time.monotonic()
    slow, late, _ = asyncio.run(whole())
    assert (slow, late) == (408, 503)
    assert time.monotonic() - start < 30


def test_errors_quote_no_half_characters() -> None:
    with client(Stub()) as asked:
        json_type = {"Content-Type": "application/json"}
        for body in (b'{"inputs": ["\\ud800"]}', b'{"\\udfff": 1}', b"[" * 100_000, b"1" * 5000):
            answer = asked.post("/predict", content=body, headers=json_type)
            assert answer.status_code in {400, 422}
            assert answer.json()["error"]["type"] == "invalid_request_error"


def test_metrics_count_requests_by_route_not_by_path() -> None:
    with client(Stub(), raise_server_exceptions=False) as asked:
        for path in ("/one", "/two"):
            assert asked.get(path).status_code == 404
        assert asked.post("/predict", json={"inputs": ["a", "b"]}).status_code == 200
        assert asked.post("/predict", json={"inputs": ["bug"]}).status_code == 500
        text = asked.get("/metrics").text
    assert 'finetune_requests_total{route="other",status="404"} 2.0' in text
    assert 'finetune_requests_total{route="/predict",status="200"} 1.0' in text
    assert 'finetune_requests_total{route="/predict",status="500"} 1.0' in text
    assert 'finetune_batch_rows_bucket{le="2.0"} 2.0' in text
    assert "finetune_queued_requests 0.0" in text


def test_openapi_describes_the_fields_of_the_task() -> None:
    with client(Stub({"question": str, "context": str})) as asked:
        row = asked.get("/openapi.json").json()["components"]["schemas"]["Row"]
        assert row["required"] == ["question", "context"]
        assert row["additionalProperties"] is False
        given = {"inputs": [{"question": "who?", "context": ""}]}
        assert asked.post("/predict", json=given).json() == {"predictions": [{"prediction": 4}]}
        for wrong in (["who?"], [{"question": "who?"}], [], [given["inputs"][0]] * 33):
            assert asked.post("/predict", json={"inputs": wrong}).status_code == 422

"""What every request has to pass before its route: token, deadline, room in the queue."""

import asyncio
import base64
import binascii
import hmac
from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Answers without a token, so that a supervisor can ask.
OPEN = "/health"


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("has half of a surrogate pair, which is no character") from None
    return text


# A text in a body. JSON can escape what no tokenizer takes.
Text = Annotated[str, AfterValidator(_encodable)]


def error(status: int, message: str, **headers: str) -> JSONResponse:
    """Returns an error as OpenAI's clients read it; other clients find ``error.message``, too.

    The message may quote the client: half a surrogate pair is escaped, and a long text cut.
    """
    text = message[:500].encode(errors="backslashreplace").decode()
    kind = "invalid_request_error" if status < 429 else "overloaded_error"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return JSONResponse({"error": {"message": text, "type": kind}}, status, named)


def busy() -> JSONResponse:
    """Returns the answer to a request for which the queue has no room."""
    return error(429, "too many requests wait for the model; try again", retry_after="1")


class Token:
    """Asks for a token on all routes but ``OPEN``, and compares it in constant time.

    It is a bearer token; a browser, which asks its user, sends it as the password of HTTP's basic
    authentication.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != OPEN:
            given = _given(Headers(scope=scope).get("authorization", ""))
            if not hmac.compare_digest(given, self.token):
                ask = 'Basic realm="the token is the password", charset="UTF-8"'
                refusal = error(401, "a token is needed: Authorization: Bearer TOKEN")
                refusal.headers["WWW-Authenticate"] = ask
                return await refusal(scope, receive, send)
        return await self.app(scope, receive, send)


def _given(authorization: str) -> bytes:
    """Returns the token of an Authorization header; empty if there is none."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("latin-1")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""


class Gate:
    """Refuses work at once while the queue is full, and ends requests at their deadline.

    A request whose client has left ends, too: the model works for the others.

    A request of another site's page is refused, too: it could not read the answer, but would cost
    the work, or write where a route writes.

    Args:
        is_full: whether the queue is.
    """

    def __init__(self, app: ASGIApp, deadline: float, is_full: Callable[[], bool]) -> None:
        self.app, self.deadline, self.is_full = app, deadline, is_full

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if scope["method"] == "POST":
            # Before the body is read: in a burst this is what most requests cost.
            if self.is_full():
                return await busy()(scope, receive, send)
            if Headers(scope=scope).get("sec-fetch-site") == "cross-site":
                refusal = error(403, "pages of other sites may not ask this service")
                return await refusal(scope, receive, send)
        return await self._before_deadline(scope, receive, send)

    async def _before_deadline(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop, has_left = asyncio.get_running_loop(), False
        is_read, has_started = asyncio.Event(), False

        async def read() -> Message:
            message = await receive()
            if not message.get("more_body", False):
                is_read.set()
            return message

        async def write(message: Message) -> None:
            nonlocal has_started
            if not has_started:
                has_started = True
                limit.reschedule(loop.time() + self.deadline)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                watching.cancel()
            await send(message)

        async def end_with_client() -> None:
            nonlocal has_left
            # Until then the route receives.
            await is_read.wait()
            while (await receive())["type"] != "http.disconnect":
                pass
            has_left = True
            limit.reschedule(loop.time())

        limit = asyncio.timeout(self.deadline)
        try:
            async with limit:
                watching = asyncio.create_task(end_with_client())
                try:
                    await self.app(scope, read, write)
                finally:
                    watching.cancel()
        except TimeoutError:
            if not limit.expired():
                raise
            if has_left:
                return
            # Of an answer that has begun, the connection is closed by the server.
            if not has_started and is_read.is_set():
                late = error(503, f"not answered in {self.deadline:g} seconds", retry_after="1")
                await late(scope, receive, send)
            elif not has_started:
                slow = error(408, f"not sent in {self.deadline:g} seconds", connection="close")
                await slow(scope, receive, send)

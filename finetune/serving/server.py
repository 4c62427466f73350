"""The process of a service: its address, its connections, and how it ends."""

import asyncio
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from finetune.errors import UserError
from finetune.serving.limits import LOOPBACK, Limits


def check_address(host: str, token: str | None) -> None:
    """Checks that only this machine can ask a service that has no token.

    Raises:
        UserError: others could.
    """
    if token is None and host not in LOOPBACK:
        raise UserError(
            f"--host {host}: other machines could ask; add --token TOKEN, or leave --host out"
        )
    if token is not None and (not token.strip() or not token.isascii()):
        raise UserError("--token: is empty or not ASCII; `openssl rand -hex 32` makes one")


def run(app: FastAPI, host: str, port: int, limits: Limits) -> None:
    """Answers requests until SIGTERM or Ctrl-C, and then those that were accepted.

    Raises:
        UserError: the address cannot be taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
        # From here on a client waits instead of being refused.
        taken.listen()
    except (OSError, OverflowError) as error:
        taken.close()
        reason = error.strerror if isinstance(error, OSError) else "is no port"
        raise UserError(f"--host {host} --port {port}: {reason}; name another") from None
    address = f"[{host}]" if ":" in host else host
    print(f"finetune: http://{address}:{taken.getsockname()[1]}", flush=True)
    Server(configured(app, limits)).run([taken])


def configured(app: FastAPI, limits: Limits) -> uvicorn.Config:
    """Returns how uvicorn serves an application."""
    return uvicorn.Config(
        app,
        http=_protocol(limits.deadline),
        ws="none",
        lifespan="on",
        access_log=False,
        log_level="warning",
        server_header=False,
        # No proxy is trusted to name another client.
        proxy_headers=False,
        # A request that has begun is answered or refused by then.
        timeout_graceful_shutdown=int(2 * limits.deadline) + 1,
    )


class Server(uvicorn.Server):
    """A server that ends without losing what it has accepted."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Reads what clients have sent already before connections without a request are closed."""
        for server in self.servers:
            server.close()
        await asyncio.sleep(0.1)
        await super().shutdown(sockets)


def _protocol(deadline: float) -> type[H11Protocol]:
    """Returns uvicorn's protocol, which closes a connection that begins no request in time.

    uvicorn itself waits without end for a request's head, and for the rest of a body that was
    refused.
    """

    class Protocol(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.loop.call_later(deadline, self.close_if_idle, None)

        def close_if_idle(self, before: Any) -> None:
            """Closes the connection if no request has begun since, and none is being answered."""
            if self.transport.is_closing():
                return
            if self.cycle is before and (before is None or before.response_complete):
                self.transport.close()
            else:
                self.loop.call_later(deadline, self.close_if_idle, self.cycle)

    return Protocol

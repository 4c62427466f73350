"""The routes of a service, in front of one model.

GET  /                     the page; /report is the run's report
GET  /about                what the page asks for
GET  /health               whether it answers, and what it is
GET  /metrics              Prometheus
GET  /openapi.json         all of this, for machines
POST /predict              labels, for tasks that predict
POST /feedback             the true label of an input, kept for a later training
POST /generate             text as server-sent events, for tasks that generate
/v1/…                      the same for OpenAI's clients, in ``completions``
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from finetune.errors import UserError
from finetune.serving import completions, feedback, generating, guards, page, predicting
from finetune.serving.batching import Batcher, Busy
from finetune.serving.generating import Answers
from finetune.serving.limits import LOOPBACK, Limits
from finetune.serving.metrics import Measure, Metrics

if TYPE_CHECKING:
    from finetune.serving.service import Service

DEFAULTS = Limits()


def create_app(service: "Service", limits: Limits = DEFAULTS, token: str | None = None) -> FastAPI:
    """Returns the application that answers for a model.

    Args:
        token: what clients have to send; without one, only requests to a loopback address are
            answered, whatever name was resolved to it.
    """
    metrics = Metrics()
    batcher = Batcher(service.predict, limits, metrics.batches.observe)
    metrics.queued.set_function(lambda: batcher.waiting)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(batcher.run())
        yield
        running.cancel()
        batcher.thread.shutdown()

    app = FastAPI(
        title=f"finetune: {service.name}",
        lifespan=lifespan,
        # Both pages load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        max_body_size=limits.body,
        form_limits={"max_files": limits.rows, "max_fields": limits.rows},
    )
    # The last one added is the first that a request meets.
    app.add_middleware(guards.Gate, limits.deadline, lambda: batcher.is_full)
    if token:
        app.add_middleware(guards.Token, token)
    else:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"])
    app.add_middleware(Measure, metrics)
    _add_errors(app)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Says that the service answers, and for which model."""
        return {
            "status": "ok",
            "model": service.name,
            "task": service.task.name,
            "engine": service.engine,
            "sha256": service.digest,
        }

    @app.get("/metrics", response_class=Response)
    async def measured() -> Response:
        """Metrics in Prometheus' text format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    app.include_router(page.router(service))
    if service.fields:
        app.include_router(predicting.router(service, batcher, limits))
    if service.fields and service.task.is_labelled:
        app.include_router(feedback.router(service, batcher, limits))
    if service.generates:
        answers = Answers(service, batcher, limits, metrics)
        app.include_router(generating.router(answers))
        app.include_router(completions.router(service, answers))
    return app


def _add_errors(app: FastAPI) -> None:
    """Lets every error that a client can cause leave in one form, without quoting its input."""

    @app.exception_handler(Busy)
    async def busy(_: Request, __: Exception) -> Response:
        return guards.busy()

    @app.exception_handler(UserError)
    async def wrong(_: Request, error: Exception) -> Response:
        return guards.error(422, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        parts = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3]]
        return guards.error(422, "; ".join(parts))

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        answer = guards.error(error.status_code, str(error.detail))
        answer.headers.update(error.headers or {})
        return answer

"""The service's metrics, as Prometheus reads them."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BATCHES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """Metrics in a registry of their own: a process can hold several services."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "finetune_requests", "Answered requests.", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "finetune_request_seconds",
            "Seconds from a request's head to the end of its answer.",
            ["route"],
            registry=self.registry,
        )
        self.batches = Histogram(
            "finetune_batch_rows",
            "Rows that shared a forward pass.",
            buckets=BATCHES,
            registry=self.registry,
        )
        self.tokens = Counter("finetune_generated_tokens", "Tokens.", registry=self.registry)
        self.queued = Gauge(
            "finetune_queued_requests", "Requests that wait for the model.", registry=self.registry
        )

    def text(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class Measure:
    """Counts and times every request by its route."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, status = time.perf_counter(), 500

        async def write(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, write)
        finally:
            # A path is the client's choice; a route is one of a few.
            route = scope.get("route")
            name = route.path if route else "other"
            self.metrics.requests.labels(name, status).inc()
            self.metrics.seconds.labels(name).observe(time.perf_counter() - start)

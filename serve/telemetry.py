"""What is told of every request: how it ended and how long it took, and a trace where tracing is configured.

Traces follow OpenTelemetry's own variables: OTEL_EXPORTER_OTLP_ENDPOINT (or ..._TRACES_ENDPOINT) turns them on,
OTEL_SERVICE_NAME names the service; the extra "tracing" installs what they need. No text is in any.
"""

import asyncio
import logging
import os
import time
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.metrics import Metrics

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_NO_ANSWER, _HUNG_UP = 500, 499  # the latter as others have it, Ray Serve too
_ELSEWHERE = "other"  # routes that do not exist, as anybody can make up any number of them

logger = logging.getLogger("ray.serve")

#: Those of this process's replica: the application is made before there is one.
_metrics: Metrics | None = None


def measure_requests(metrics: Metrics | None) -> None:
    """Count requests in these metrics from now on; None: in none."""
    global _metrics
    _metrics = metrics


class Telemetry:
    """Measures and traces requests."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._provider = tracer_provider()
        self._tracer = self._provider and self._provider.get_tracer("rayguard")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and tell how it ended."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = _NO_ANSWER
        begun = time.monotonic()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        span = self._begin_span(scope) if self._tracer else None
        try:
            await self.app(scope, receive, watched)
        except asyncio.CancelledError:  # the client has hung up
            status = _HUNG_UP if status == _NO_ANSWER else status
            raise
        finally:
            route = getattr(scope.get("route"), "path", _ELSEWHERE)
            if _metrics:
                _metrics.count("rayguard_requests", route=route, status=str(status))
                _metrics.observe("rayguard_request_seconds", time.monotonic() - begun, route=route)
            if span:
                span.update_name(f"{scope['method']} {route}")
                span.set_attributes({"http.route": route, "http.response.status_code": status})
                span.end()

    def _begin_span(self, scope: Scope) -> Any:
        from opentelemetry import propagate, trace

        parent = propagate.extract(dict(Headers(scope=scope)))
        return self._tracer.start_span(
            scope["method"],
            context=parent,
            kind=trace.SpanKind.SERVER,
            attributes={"http.request.method": scope["method"], "url.path": scope["path"]},
        )


def tracer_provider() -> Any:
    """Return OpenTelemetry's provider of tracers, None where no endpoint is configured or a package is missing."""
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        logger.error("Requests are not traced: %s. Install rayguard[tracing].", error)
        return None
    name = os.environ.get("OTEL_SERVICE_NAME", "rayguard")
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider

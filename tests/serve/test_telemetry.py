"""What is told of requests: counts and times by route, and traces where an endpoint is configured."""

import asyncio
import http.server
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from serve import telemetry
from serve.telemetry import Telemetry, measure_requests


class Told:
    """Metrics that remember what they are told."""

    def __init__(self) -> None:
        self.counted: list[dict[str, str]] = []

    def count(self, name: str, value: float = 1.0, **tags: str) -> None:
        self.counted.append(tags)

    def observe(self, name: str, value: float, **tags: str) -> None:
        assert value >= 0 and tags["route"] == self.counted[-1]["route"]


@pytest.fixture
def told() -> Iterator[Told]:
    told: Any = Told()
    measure_requests(told)
    yield told
    measure_requests(None)


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """What an OpenTelemetry collector is sent."""
    received: list[bytes] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield received
        server.shutdown()


def asked(*paths: str, **headers: str) -> Telemetry:
    """Ask an application that fails on /fail; return its telemetry."""
    api = FastAPI()

    @api.get("/items/{item}")
    async def _item(item: str) -> str:
        if item == "fail":
            raise RuntimeError("secret")
        return item

    app = Telemetry(api)

    async def ask() -> None:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for path in paths:
                await client.get(path, headers=headers)

    asyncio.run(ask())
    return app


def test_requests_are_counted_by_route_and_status(told: Told) -> None:
    asked("/items/1", "/items/2", "/items/fail", "/made/up")
    item = "/items/{item}"
    assert [(each["route"], each["status"]) for each in told.counted] == [
        (item, "200"),
        (item, "200"),
        (item, "500"),
        ("other", "404"),
    ]


def test_a_client_that_hangs_up_is_no_failure_of_ours(told: Told) -> None:
    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    async def hang_up() -> None:
        scope = {"type": "http", "method": "GET", "path": "/"}
        request = asyncio.create_task(Telemetry(waits)(scope, None, None))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request

    asyncio.run(hang_up())
    assert [each["status"] for each in told.counted] == ["499"]


def test_without_an_endpoint_nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in telemetry._ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    assert telemetry.tracer_provider() is None


def test_a_trace_goes_on_where_the_client_began_it_and_holds_no_text(collector: list[bytes]) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    app = asked("/items/hello?text=secret", traceparent=f"00-{trace}-b7ad6b7169203331-01")
    assert app._provider
    app._provider.force_flush()
    assert bytes.fromhex(trace) in collector[0]
    assert b"GET /items/{item}" in collector[0] and b"rayguard" in collector[0] and b"secret" not in collector[0]

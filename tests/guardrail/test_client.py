"""The client: what is asked again, how long is waited, and what errors say; on a service of canned answers."""

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from guardrail.client import AsyncGuardClient, GuardClient, GuardServiceError, ResponseStopped
from serve.config import DEADLINE_SECONDS

BUSY = httpx.Response(429, headers={"Retry-After": "7"}, json={"error": {"message": "later", "code": "overloaded"}})
DOWN = httpx.ConnectError("refused")
ANSWER = httpx.Response(
    200,
    json={
        "id": "guard-1", "model": "rayguard-v1", "digest": "d", "unsafe": False, "policy": "guard", "action": "allow",
        "reasons": [], "score": 0.1, "threshold": 0.5, "categories": {}, "parts": [],
    },
)  # fmt: skip
Outcome = httpx.Response | httpx.RequestError


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client waits, without waiting."""
    waited: list[float] = []

    async def asleep(seconds: float) -> None:
        waited.append(seconds)

    # The modules as the client sees them: other threads of the tests' process sleep as before.
    monkeypatch.setattr("guardrail.client.time", SimpleNamespace(sleep=waited.append))
    monkeypatch.setattr("guardrail.client.asyncio", SimpleNamespace(sleep=asleep))
    return waited


def transport(outcomes: list[Outcome]) -> httpx.MockTransport:
    remaining: Iterator[Outcome] = iter(outcomes)

    def handle(request: httpx.Request) -> httpx.Response:
        outcome = next(remaining)
        if isinstance(outcome, httpx.RequestError):
            raise outcome
        return httpx.Response(outcome.status_code, headers=outcome.headers, content=outcome.content)

    return httpx.MockTransport(handle)


def asked(outcomes: list[Outcome], retries: int) -> str:
    with GuardClient(retries=retries) as guard:
        guard._http = httpx.Client(base_url="http://test", transport=transport(outcomes))
        return guard.ask("a").model


def asked_async(outcomes: list[Outcome], retries: int) -> str:
    async def ask() -> str:
        async with AsyncGuardClient(retries=retries) as guard:
            guard._http = httpx.AsyncClient(base_url="http://test", transport=transport(outcomes))
            return (await guard.ask("a")).model

    return asyncio.run(ask())


both = pytest.mark.parametrize("ask", [asked, asked_async])


@both
def test_a_busy_or_absent_service_is_asked_again_no_sooner_than_it_says(
    ask: Callable[[list[Any], int], str], waits: list[float]
) -> None:
    assert ask([DOWN, BUSY, ANSWER], 2) == "rayguard-v1"
    assert waits == [0.5, 7.0]


@both
@pytest.mark.parametrize(
    ("outcomes", "status", "code", "message"),
    [
        ([BUSY, BUSY], 429, "overloaded", "later"),
        ([DOWN, DOWN], 0, None, "cannot be reached: ConnectError"),
        ([httpx.Response(400, json={"error": {"message": "no", "code": "invalid_form"}})], 400, "invalid_form", "no"),
        ([httpx.Response(502, text="<html>")], 502, None, "HTTP 502"),
        ([httpx.Response(200, text="hello")], 200, None, "does not answer as rayguard does"),
    ],
)
def test_what_is_no_answer_is_an_error_that_says_what_it_is(
    ask: Callable[[list[Any], int], str],
    waits: list[float],
    outcomes: list[Any],
    status: int,
    code: str | None,
    message: str,
) -> None:
    with pytest.raises(GuardServiceError, match=message) as error:
        ask(outcomes, 1)
    assert (error.value.status, error.value.code, len(waits)) == (status, code, len(outcomes) - 1)


def late(request: httpx.Request) -> httpx.Response:
    """Answer at the service's deadline, as httpx finds it."""
    if request.extensions["timeout"]["read"] <= DEADLINE_SECONDS:
        raise httpx.ReadTimeout("late")
    return httpx.Response(200, json={**ANSWER.json(), "action": "block", "degraded": "deadline_exceeded"})


def test_that_the_service_was_late_is_an_answer_not_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Client", "AsyncClient"):
        monkeypatch.setattr(httpx, name, partial(getattr(httpx, name), transport=httpx.MockTransport(late)))

    async def ask() -> str | None:
        async with AsyncGuardClient(retries=0) as guard:
            return (await guard.ask("a")).degraded

    with GuardClient(retries=0) as guard:
        assert guard.ask("a").degraded == "deadline_exceeded"
    assert asyncio.run(ask()) == "deadline_exceeded"


def test_of_a_response_that_is_stopped_what_lies_before_is_shown_however_it_came():
    stopped = {
        "model": "rayguard-v1", "digest": "d", "policy": "guard", "action": "block",
        "reasons": ["unsafe"], "score": 0.9, "checked": 8, "release": 8, "next": 512, "stop_at": 8,
    }  # fmt: skip

    async def pieces():
        yield "as it is, and then not"

    async def asynchronously():
        async with AsyncGuardClient() as guard:
            guard._http = httpx.AsyncClient(
                base_url="http://test", transport=transport([httpx.Response(200, json=stopped)])
            )
            seen = []
            with pytest.raises(ResponseStopped):
                async for text in guard.shown(pieces()):
                    seen.append(text)
            return seen

    with GuardClient() as guard:
        guard._http = httpx.Client(base_url="http://test", transport=transport([httpx.Response(200, json=stopped)]))
        seen = []
        with pytest.raises(ResponseStopped):
            for text in guard.shown(["as it is, and then not"]):
                seen.append(text)
    assert seen == ["as it is"] == asyncio.run(asynchronously())

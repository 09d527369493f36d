"""Errors in OpenAI's shape, and nothing of the text in logs."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
import starlette.exceptions
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from pydantic import BaseModel, ValidationError
from starlette.types import Message, Receive, Scope, Send

from serve import middleware
from serve.admission import Overloaded, TooMuch
from serve.errors import answer_errors
from serve.keys import Keys, main
from serve.middleware import MAX_BODY_BYTES, BodyLimit, require_keys
from serve.moderation import ModerationRequest, RequestRefused, TextPart
from serve.native import GuardRequest
from serve.perspective import AnalyzeRequest
from serve.streaming import StreamRequest

SECRET = "the text of a user"


@pytest.fixture
def client() -> TestClient:
    """A client of an application whose every route fails in its own way."""
    api = FastAPI()
    answer_errors(api)

    @api.post("/crash")
    def crash() -> None:
        raise ValueError(SECRET)

    @api.post("/refuse")
    def refuse() -> None:
        raise RequestRefused("no such model", param="model", code="model_not_found")

    @api.post("/unavailable")
    def unavailable() -> None:
        raise HTTPException(503, "later", headers={"Retry-After": "3"})

    @api.post("/overloaded")
    def overloaded() -> None:
        raise Overloaded(7)

    @api.post("/long")
    def long() -> None:
        raise TooMuch(40.0, max_tokens=1_000_000)

    @api.post("/late")
    def late() -> None:
        raise TimeoutError

    @api.post("/read")
    def read(request: ModerationRequest) -> None: ...

    return TestClient(api)


@pytest.mark.parametrize(
    ("path", "status", "type", "code"),
    [
        ("/crash", 500, "server_error", "internal_error"),
        ("/refuse", 400, "invalid_request_error", "model_not_found"),
        ("/unavailable", 503, "server_error", None),
        ("/read", 400, "invalid_request_error", "invalid_type"),
        ("/overloaded", 429, "server_error", "overloaded"),
        ("/late", 503, "server_error", "deadline_exceeded"),
        ("/long", 413, "invalid_request_error", "request_too_large"),
        ("/nothing", 404, "invalid_request_error", None),
    ],
)
def test_each_error_has_the_shape_and_its_cause(
    client: TestClient, path: str, status: int, type: str, code: str | None
) -> None:
    answer = client.post(path, json={"input": {"text": SECRET}})
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert (answer.json()["error"]["type"], answer.json()["error"]["code"]) == (type, code)
    assert SECRET not in answer.text


@pytest.mark.parametrize(
    ("body", "code"),
    [(b'{"input": ' + b"[" * 100_000, "json_too_deep"), (b'{"input": "\xff"}', "invalid_encoding")],
    ids=["deep", "no UTF-8"],
)
def test_a_body_that_cannot_be_parsed_says_why(client: TestClient, body: bytes, code: str) -> None:
    answer = client.post("/read", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


def test_a_request_of_too_many_tokens_is_told_how_much_of_it_would_do(client: TestClient) -> None:
    message = client.post("/long").json()["error"]["message"]
    assert message == "The texts have more than 1,000,000 tokens; send at most 40% of them in one request."


@pytest.mark.parametrize(("path", "seconds"), [("/unavailable", "3"), ("/overloaded", "7"), ("/late", "1")])
def test_an_error_says_when_to_try_again(client: TestClient, path: str, seconds: str) -> None:
    assert client.post(path).headers["Retry-After"] == seconds


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_that_is_too_large_is_refused(client: TestClient, declared: bool) -> None:
    body = b'{"input": "' + b"x" * MAX_BODY_BYTES + b'"}'
    answer = client.post("/read", content=body if declared else iter([body[: 1 << 20], body[1 << 20 :]]))
    assert answer.status_code == 413 and "send the texts in several requests" in answer.json()["error"]["message"]


def test_a_body_that_does_not_come_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "BODY_SECONDS", 0.05)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass

    async def stalls() -> Message:
        if started:
            await asyncio.Event().wait()
        started.append(1)
        return {"type": "http.request", "body": b"{", "more_body": True}

    async def send(message: Message) -> None: ...

    started: list[int] = []
    scope = {"type": "http", "path": "/", "headers": [(b"content-length", b"10")]}
    with pytest.raises(starlette.exceptions.HTTPException) as refused:
        asyncio.run(BodyLimit(app)(scope, stalls, send))
    assert refused.value.status_code == 408


@pytest.mark.parametrize(
    ("body", "known"),
    [(ModerationRequest, {"input": "a"}), (TextPart, {"type": "text", "text": "a"}),
     (GuardRequest, {"prompt": "a"}), (StreamRequest, {"response": "a"}),
     (AnalyzeRequest, {"comment": {"text": "a"}, "doNotStore": True, "span_annotations": True})],
)  # fmt: skip
def test_of_a_million_unknown_keys_one_is_named(body: type[BaseModel], known: dict[str, Any]) -> None:
    body.model_validate(known)
    with pytest.raises(ValidationError) as refused:
        body.model_validate({**known, **{f"key {i}": 1 for i in range(1000)}})
    assert [error["loc"] for error in refused.value.errors()] == [("key 0",)]


def test_with_keys_only_their_owners_are_let_in(
    client: TestClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--file", str(tmp_path / "keys"), "add", "tests"]) == 0
    key = capsys.readouterr().out.strip()
    require_keys(Keys(tmp_path / "keys"))
    try:
        for header in ({}, {"Authorization": "Bearer x"}, {"Authorization": key}, {"Authorization": f"Basic {key}"}):
            answer = client.post("/read", json={"input": "a"}, headers=header)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert client.post("/read", json={"input": "a"}, headers={"Authorization": f"Bearer {key}"}).is_success
        assert client.get("/healthz").status_code == 404  # there is none here, but it wants no key
    finally:
        require_keys(None)
    assert client.post("/read", json={"input": "a"}).is_success


def test_a_crash_is_logged_by_kind_and_place_without_the_text(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("ray.serve")
    logger.addHandler(caplog.handler)  # Serve's logger does not propagate
    try:
        client.post("/crash")
    finally:
        logger.removeHandler(caplog.handler)
    assert "ValueError at " in caplog.text and Path(__file__).name in caplog.text
    assert SECRET not in caplog.text

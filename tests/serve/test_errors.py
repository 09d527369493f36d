"""Errors in OpenAI's shape, and nothing of the text in logs."""

import logging
from pathlib import Path

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient

from serve.errors import answer_errors
from serve.moderation import ModerationRequest, RequestRefused

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


def test_headers_of_an_error_are_kept(client: TestClient) -> None:
    assert client.post("/unavailable").headers["Retry-After"] == "3"


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

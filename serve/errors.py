"""Every error of the HTTP service in OpenAI's shape: `{"error": {message, type, param, code}}`."""

import logging
import traceback
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serve.moderation import ErrorBody, RequestRefused, invalid_body, invalid_request, server_error

logger = logging.getLogger("ray.serve")


def answer_errors(api: FastAPI) -> None:
    """Have an application answer each error in that shape, and log none of the text that caused it."""
    api.exception_handler(RequestRefused)(_refused)
    api.exception_handler(RequestValidationError)(_invalid)
    api.exception_handler(HTTPException)(_http)
    api.middleware("http")(_contain)


async def _refused(_: Request, error: RequestRefused) -> Response:
    return _answer(HTTPStatus.BAD_REQUEST, error.body)


async def _invalid(_: Request, error: RequestValidationError) -> Response:
    return _answer(HTTPStatus.BAD_REQUEST, invalid_body(error.errors()))


async def _http(_: Request, error: HTTPException) -> Response:
    message = str(error.detail)
    is_ours = error.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR
    return _answer(error.status_code, server_error(message) if is_ours else invalid_request(message), error.headers)


async def _contain(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    # As a handler of Exception would, but that one raises the exception again, and Serve would log it: its message may
    # quote the text. So the log gets its kind and the line it came from.
    try:
        return await call_next(request)
    except Exception as error:  # noqa: BLE001 - the last resort
        origin = traceback.extract_tb(error.__traceback__)[-1]
        logger.error("Request failed: %s at %s:%s.", type(error).__name__, origin.filename, origin.lineno)
        return _answer(HTTPStatus.INTERNAL_SERVER_ERROR, server_error(code="internal_error"))


def _answer(status: int, body: ErrorBody, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse(body.model_dump(), status_code=status, headers=headers)

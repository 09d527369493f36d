"""Every error of the HTTP service in OpenAI's shape: `{"error": {message, type, param, code}}`."""

from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from serve.admission import Overloaded, TooMuch
from serve.middleware import TOO_LARGE_CODE, BodyLimit, Contained, KeyRequired, answer
from serve.moderation import RequestRefused, invalid_body, invalid_request, server_error


def answer_errors(api: FastAPI) -> None:
    """Have an application answer each error in that shape, and log none of the text that caused it."""
    api.exception_handler(RequestRefused)(_refused)
    api.exception_handler(RequestValidationError)(_invalid)
    api.exception_handler(HTTPException)(_http)
    api.exception_handler(Overloaded)(_overloaded)
    api.exception_handler(TooMuch)(_too_much)
    api.exception_handler(TimeoutError)(_late)
    for each in (Contained, BodyLimit, KeyRequired):  # the last one comes first
        api.add_middleware(each)


async def _refused(_: Request, error: RequestRefused) -> Response:
    return answer(HTTPStatus.BAD_REQUEST, error.body)


async def _invalid(_: Request, error: RequestValidationError) -> Response:
    return answer(HTTPStatus.BAD_REQUEST, invalid_body(error.errors()))


async def _http(_: Request, error: HTTPException) -> Response:
    message = str(error.detail)
    code = TOO_LARGE_CODE if error.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE else None
    is_ours = error.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR
    body = server_error(message) if is_ours else invalid_request(message, code=code)
    return answer(error.status_code, body, dict(error.headers or {}))


async def _overloaded(_: Request, error: Overloaded) -> Response:
    body = server_error("More requests than can be answered in time; try again later.", code="overloaded")
    return answer(HTTPStatus.TOO_MANY_REQUESTS, body, {"Retry-After": str(error.retry_after)})


async def _too_much(_: Request, error: TooMuch) -> Response:
    message = f"The texts cannot be read in time; send at most {error.share}% of them in one request."
    return answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, invalid_request(message, code=TOO_LARGE_CODE))


async def _late(_: Request, __: TimeoutError) -> Response:
    body = server_error("The answer was not there in time.", code="deadline_exceeded")
    return answer(HTTPStatus.SERVICE_UNAVAILABLE, body, {"Retry-After": "1"})

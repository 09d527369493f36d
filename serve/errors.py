"""Every error of the service in OpenAI's shape, `{"error": {message, type, param, code}}`, or as the route has it."""

from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from serve.admission import OverBudget, Overloaded, TooMuch
from serve.answer_headers import AnswerHeaders
from serve.middleware import TOO_LARGE_CODE, BodyLimit, Contained, KeyRequired, answer
from serve.moderation import RequestRefused, invalid_body, invalid_request, server_error


def answer_errors(api: FastAPI) -> None:
    """Have an application answer each error in that shape, and log none of the text that caused it."""
    api.exception_handler(RequestRefused)(_refused)
    api.exception_handler(RequestValidationError)(_invalid)
    api.exception_handler(HTTPException)(_http)
    api.exception_handler(Overloaded)(_overloaded)
    api.exception_handler(OverBudget)(_over_budget)
    api.exception_handler(TooMuch)(_too_much)
    api.exception_handler(TimeoutError)(_late)
    for each in (Contained, BodyLimit, KeyRequired, AnswerHeaders):  # the last one comes first
        api.add_middleware(each)


async def _refused(request: Request, error: RequestRefused) -> Response:
    return answer(request.scope, HTTPStatus.BAD_REQUEST, error.body)


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    return answer(request.scope, HTTPStatus.BAD_REQUEST, invalid_body(error.errors()))


async def _http(request: Request, error: HTTPException) -> Response:
    message, code = str(error.detail), None
    if error.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        code = TOO_LARGE_CODE
    elif isinstance(error.__cause__, RecursionError):
        message, code = "The body's JSON is nested too deeply.", "json_too_deep"
    elif isinstance(error.__cause__, UnicodeDecodeError):
        message, code = "The body is no UTF-8.", "invalid_encoding"
    is_ours = error.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR
    body = server_error(message) if is_ours else invalid_request(message, code=code)
    return answer(request.scope, error.status_code, body, dict(error.headers or {}))


async def _overloaded(request: Request, error: Overloaded) -> Response:
    body = server_error("More requests than can be answered in time; try again later.", code="overloaded")
    return answer(request.scope, HTTPStatus.TOO_MANY_REQUESTS, body, {"Retry-After": str(error.retry_after)})


async def _over_budget(request: Request, error: OverBudget) -> Response:
    body = invalid_request("The key has spent its tokens of this minute.", code="rate_limit_exceeded")
    return answer(request.scope, HTTPStatus.TOO_MANY_REQUESTS, body, {"Retry-After": str(error.retry_after)})


async def _too_much(request: Request, error: TooMuch) -> Response:
    problem = f"have more than {error.max_tokens:,} tokens" if error.max_tokens else "cannot be read in time"
    message = f"The texts {problem}; send at most {error.share}% of them in one request."
    return answer(request.scope, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, invalid_request(message, code=TOO_LARGE_CODE))


async def _late(request: Request, _: TimeoutError) -> Response:
    body = server_error("The answer was not there in time.", code="deadline_exceeded")
    return answer(request.scope, HTTPStatus.SERVICE_UNAVAILABLE, body, {"Retry-After": "1"})

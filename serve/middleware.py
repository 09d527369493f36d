"""What stands before every route: keys, the size of bodies, and the last resort for what fails. Pure ASGI."""

import asyncio
import logging
import traceback
from collections.abc import Iterator
from http import HTTPStatus

from starlette.datastructures import Headers, QueryParams
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve import litellm, perspective
from serve.keys import Key, Keys
from serve.moderation import ErrorBody, invalid_request, server_error

MAX_BODY_BYTES = 8 << 20
BODY_SECONDS = 30.0  # in which a body must have come: one that does not holds a place
TOO_LARGE_CODE = "request_too_large"
_TOO_LARGE = f"The body has more than {MAX_BODY_BYTES >> 20} MiB; send the texts in several requests."
_TOO_SLOW = f"The body has not come within {BODY_SECONDS:.0f} seconds."
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/"})  # what watches the service has no key; the page asks for one

_KEY = "rayguard.key"  # of a request's scope

logger = logging.getLogger("ray.serve")

#: The keys of this process's replica: the application is made before anybody says which.
_keys: Keys | None = None


def require_keys(keys: Keys | None) -> None:
    """Let only these keys in from now on; None: everybody."""
    global _keys
    _keys = keys


class KeyRequired:
    """Refuses requests without a known bearer key, unread."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401."""
        if _keys is None or scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        for offered in offered_keys(scope):
            if key := _keys.find(offered):
                scope[_KEY] = key
                await self.app(scope, receive, send)
                return
        message = "Missing or unknown key: send a key of this service as 'Authorization: Bearer KEY'."
        body = invalid_request(message, code="invalid_api_key")
        await answer(scope, HTTPStatus.UNAUTHORIZED, body, {"WWW-Authenticate": "Bearer"})(scope, receive, send)


def key_of(scope: Scope) -> Key | None:
    """Return the key that a request came with; None where none is wanted."""
    key: Key | None = scope.get(_KEY)
    return key


def offered_keys(scope: Scope) -> Iterator[str]:
    """Yield the keys that a request brings: a bearer's, and where clients of others' contracts put theirs."""
    headers = Headers(scope=scope)
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        yield key.strip()
    if scope["path"] == litellm.PATH:
        yield headers.get("x-api-key", "")
    if scope["path"] == perspective.PATH:
        yield QueryParams(scope["query_string"]).get("key", "")


class BodyLimit:
    """Refuses bodies of more than `MAX_BODY_BYTES`, by what they say of themselves or once they are; and slow ones."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 413 or 408."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        read = int(declared) if declared.isdecimal() else 0
        if read > MAX_BODY_BYTES:
            body = invalid_request(_TOO_LARGE, code=TOO_LARGE_CODE)
            await answer(scope, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, body)(scope, receive, send)
            return
        read, more, until = 0, True, asyncio.get_running_loop().time() + BODY_SECONDS

        async def counted() -> Message:
            nonlocal read, more
            try:
                async with asyncio.timeout_at(until if more else None):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, _TOO_SLOW) from None
            read, more = read + len(message.get("body", b"")), message.get("more_body", False)
            if read > MAX_BODY_BYTES:
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _TOO_LARGE)
            return message

        await self.app(scope, counted, send)


class Contained:
    """Answers what nothing else has caught with 500, and logs its kind and place alone.

    A handler of Exception would raise it again, and Serve would log it: its message may quote the text.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:  # noqa: BLE001 - the last resort
            origin = traceback.extract_tb(error.__traceback__)[-1]
            logger.error("Request failed: %s at %s:%s.", type(error).__name__, origin.filename, origin.lineno)
            if scope["type"] == "http" and not begun:
                body = server_error(code="internal_error")
                await answer(scope, HTTPStatus.INTERNAL_SERVER_ERROR, body)(scope, receive, send)


def answer(scope: Scope, status: int, body: ErrorBody, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return an error as a response, in the shape that clients of the route expect."""
    if scope["path"] == perspective.PATH:
        content = perspective.google_error(status, body).model_dump(by_alias=True, exclude_none=True)
    else:
        content = body.model_dump()
    return JSONResponse(content, status_code=status, headers=headers)

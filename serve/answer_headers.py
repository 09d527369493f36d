"""Headers of answers that a route's handler decides on, whose contract has no room for what they say. Pure ASGI."""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADERS = "rayguard.headers"  # of a request's scope


def say(scope: Scope, header: str, value: str) -> None:
    """Have the answer to a request carry a header."""
    scope.setdefault(_HEADERS, {})[header] = value


class AnswerHeaders:
    """Puts on answers what `say` was told of their requests."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and its answer back."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(scope.get(_HEADERS, {}))
            await send(message)

        await self.app(scope, receive, with_headers)

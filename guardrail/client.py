"""A client of the service's own contract, sync and async.

    with GuardClient("http://127.0.0.1:8000") as guard:
        if guard.ask("How do I kill a Python process?").action == "block": ...
        for text in guard.shown(pieces_of_the_response, prompt=prompt): print(text, end="")

A request that meets 429, 503 or a broken connection is sent again, no sooner than the service asks.
"""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from typing import Any, Self, TypedDict, TypeVar

import httpx
from pydantic import ValidationError

from guardrail.answers import GuardResponse, StreamResponse

Answer = TypeVar("Answer", GuardResponse, StreamResponse)
_AGAIN = frozenset({429, 503})
_LONGEST_WAIT_SECONDS = 30.0
_TIMEOUT_SECONDS = 40.0  # more than the service takes at most: that it could not judge is an answer, too


class ChatMessage(TypedDict):
    """A message of a conversation."""

    role: str
    content: str


class GuardServiceError(Exception):
    """The service cannot be reached, or refuses; `status` is that of HTTP, 0 where there was no answer."""

    def __init__(self, message: str, *, status: int = 0, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class ResponseStopped(Exception):
    """A response must not be shown beyond `stop_at` characters, for `reasons`."""

    def __init__(self, answer: StreamResponse) -> None:
        super().__init__(f"stopped at character {answer.stop_at}: {', '.join(answer.reasons)}")
        self.stop_at, self.reasons, self.answer = answer.stop_at, answer.reasons, answer


class _Shown:
    """A response that is being written, and how much of it may be shown."""

    def __init__(self, prompt: str | None, policy: str | None) -> None:
        self._fixed = _given(prompt=prompt, policy=policy)
        self._response, self._shown, self._checked, self._next = "", 0, 0, 1

    def add(self, piece: str) -> dict[str, Any] | None:
        """Take a piece of it; return what to ask, if there is anything to be told yet."""
        self._response += piece
        return self.question(done=False) if len(self._response) >= self._next else None

    def question(self, done: bool) -> dict[str, Any]:
        return {**self._fixed, "response": self._response, "checked": self._checked, "done": done}

    def released(self, answer: StreamResponse) -> Iterator[str]:
        """Yield what may be shown now and was not before, if there is any.

        Raises:
            ResponseStopped: nothing more may be shown.
        """
        text = self._response[self._shown : answer.release]
        self._shown, self._checked, self._next = max(self._shown, answer.release), answer.checked, answer.next
        if text:
            yield text
        if answer.stop_at is not None:
            raise ResponseStopped(answer)


class _Client:
    def __init__(self, base_url: str, key: str | None, timeout: float, retries: int) -> None:
        self._retries = retries
        self._options: dict[str, Any] = {
            "base_url": base_url,
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            "timeout": timeout,
        }

    def _settled(self, outcome: httpx.Response | httpx.RequestError, tried: int) -> httpx.Response | float:
        """Return the answer, or in how many seconds to try again after so many tries.

        Raises:
            GuardServiceError: the service was not reached in the last try.
        """
        is_last, wait = tried > self._retries, 0.5 * 2 ** (tried - 1)
        if isinstance(outcome, httpx.Response):
            if outcome.status_code not in _AGAIN or is_last:
                return outcome
            return min(_LONGEST_WAIT_SECONDS, max(_seconds(outcome), wait))
        if is_last:
            raise GuardServiceError(f"the service cannot be reached: {type(outcome).__name__}") from outcome
        return wait


class GuardClient(_Client):
    """The client.

    Args:
        base_url: of the service, as http://127.0.0.1:8000.
        key: bearer key, where the service wants one.
        timeout: seconds for a try.
        retries: further tries.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        key: str | None = None,
        timeout: float = _TIMEOUT_SECONDS,
        retries: int = 2,
    ) -> None:
        super().__init__(base_url, key, timeout, retries)
        self._http = httpx.Client(**self._options)

    def ask(
        self,
        prompt: str | None = None,
        *,
        response: str | None = None,
        messages: Sequence[ChatMessage] | None = None,
        policy: str | None = None,
    ) -> GuardResponse:
        """Return what the guard says of a prompt, of a prompt and its response, or of a conversation.

        Raises:
            GuardServiceError: the service cannot be reached, or refuses.
        """
        body = _given(prompt=prompt, response=response, messages=messages, policy=policy)
        return _read(self._post("/v1/guard", body), GuardResponse)

    def shown(self, pieces: Iterable[str], *, prompt: str | None = None, policy: str | None = None) -> Iterator[str]:
        """Yield of a response that comes in pieces what may be shown, as soon as it may.

        Raises:
            ResponseStopped: nothing more of it may be shown.
            GuardServiceError: the service cannot be reached, or refuses.
        """
        response = _Shown(prompt, policy)
        for piece in pieces:
            if question := response.add(piece):
                yield from response.released(self._stream(question))
        yield from response.released(self._stream(response.question(done=True)))

    def _stream(self, question: dict[str, Any]) -> StreamResponse:
        return _read(self._post("/v1/guard/stream", question), StreamResponse)

    def _post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        tried = 0
        while True:
            tried += 1
            try:
                outcome: httpx.Response | httpx.RequestError = self._http.post(path, json=body)
            except httpx.RequestError as error:
                outcome = error
            settled = self._settled(outcome, tried)
            if isinstance(settled, httpx.Response):
                return settled
            time.sleep(settled)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncGuardClient(_Client):
    """The same client for asyncio."""

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        key: str | None = None,
        timeout: float = _TIMEOUT_SECONDS,
        retries: int = 2,
    ) -> None:
        super().__init__(base_url, key, timeout, retries)
        self._http = httpx.AsyncClient(**self._options)

    async def ask(
        self,
        prompt: str | None = None,
        *,
        response: str | None = None,
        messages: Sequence[ChatMessage] | None = None,
        policy: str | None = None,
    ) -> GuardResponse:
        """As `GuardClient.ask`."""
        body = _given(prompt=prompt, response=response, messages=messages, policy=policy)
        return _read(await self._post("/v1/guard", body), GuardResponse)

    async def shown(
        self, pieces: AsyncIterable[str], *, prompt: str | None = None, policy: str | None = None
    ) -> AsyncIterator[str]:
        """As `GuardClient.shown`."""
        response = _Shown(prompt, policy)
        async for piece in pieces:
            if question := response.add(piece):
                for text in response.released(await self._stream(question)):
                    yield text
        for text in response.released(await self._stream(response.question(done=True))):
            yield text

    async def _stream(self, question: dict[str, Any]) -> StreamResponse:
        return _read(await self._post("/v1/guard/stream", question), StreamResponse)

    async def _post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        tried = 0
        while True:
            tried += 1
            try:
                outcome: httpx.Response | httpx.RequestError = await self._http.post(path, json=body)
            except httpx.RequestError as error:
                outcome = error
            settled = self._settled(outcome, tried)
            if isinstance(settled, httpx.Response):
                return settled
            await asyncio.sleep(settled)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _read(response: httpx.Response, kind: type[Answer]) -> Answer:
    if not response.is_success:
        raise _refusal(response)
    try:
        return kind.model_validate_json(response.content)
    except ValidationError:
        raise GuardServiceError(
            f"{response.url} does not answer as rayguard does", status=response.status_code
        ) from None


def _refusal(response: httpx.Response) -> GuardServiceError:
    try:
        error = response.json()["error"]
        message, code = str(error["message"]), error["code"]
    except (ValueError, KeyError, TypeError):
        message, code = f"HTTP {response.status_code}", None
    return GuardServiceError(message, status=response.status_code, code=code)


def _seconds(response: httpx.Response) -> float:
    try:
        return float(response.headers.get("Retry-After", ""))
    except ValueError:
        return 0.0

"""A guard behind a moderation endpoint as OpenAI defined it: ours, OpenAI's, anyone's; measured and attacked by HTTP.

A service tells its decision (`flagged`) and a score for each category, but no threshold and no P(unsafe). So decisions
are the service's own, and where texts are ranked (AUPRC, say) a text's score is that of its highest category: it can be
low in a text that is flagged. Texts leave this machine; they are never logged, nor is the key.
"""

import email.utils
import logging
import os
import random
import re
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import httpx
import numpy as np
from pydantic import BaseModel, Field, ValidationError

from guardrail.guard import LABELS, UNSAFE, Guard
from guardrail.reading import Readable

logger = logging.getLogger(__name__)

#: The environment variable that holds the service's bearer key; a Ray actor reads that of its own process.
KEY_VARIABLE = "RAYGUARD_TARGET_KEY"

_TIMEOUT_SECONDS = 60.0
_LONGEST_BACKOFF_SECONDS = 30.0
_LONGEST_WAIT_SECONDS = 120.0  # that a service may ask for; a quota that is used up for today is a failure
_TEXT_REFUSALS = frozenset({400, 413, 422})  # or of a list
_HINTS = {
    401: f"put the service's key into {KEY_VARIABLE}",
    403: f"put a key that may ask it into {KEY_VARIABLE}",
    404: "the URL is that of the endpoint itself, as https://HOST/v1/moderations",
    405: "the URL is that of the endpoint itself, as https://HOST/v1/moderations",
}
_ERROR_CODE = re.compile(r'"(?:code|type)"\s*:\s*"([\w.-]{1,60})"')


class Moderation(NamedTuple):
    """What a guard or a service says of n texts.

    Attributes:
        probabilities: float64 [n, len(LABELS)] in [0, 1]. A service's "unsafe" is the highest score of all its
            categories, known here or not (where it scores none, its decision); of ours that it does not have, 0.
        flagged: the decisions, bool [n].
    """

    probabilities: np.ndarray
    flagged: np.ndarray


class TargetError(ConnectionError):
    """A service cannot be measured; the message says why and what to do, and quotes no text."""


class TextRefusedError(TargetError):
    """A service refuses one text, sent by itself; it may answer others."""


_Score = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Result(BaseModel):
    flagged: bool
    category_scores: dict[str, _Score | None] = {}


class _Answer(BaseModel):
    model: str | None = None
    results: list[_Result] = Field(min_length=1)


class RemoteGuard:
    """A moderation endpoint with as much of `Guard`'s surface as measuring and attacking need.

    Args:
        url: of the endpoint itself, as https://HOST/v1/moderations. Its key, if it wants one, is in `KEY_VARIABLE`.
        batch: texts in a request; becomes 1 for good once the service refuses a list whose texts it takes one by one.
        tries: of a request that meets 408, 429, 5xx, a timeout or a broken connection. Waits double from one second on,
            up to half a minute, with jitter, and are no shorter than Retry-After asks for: by default all together
            outlast a quota for the minute.
        sleep: waits some seconds.

    Raises:
        ValueError: the URL is none, or carries a password.
    """

    def __init__(
        self, url: str, *, batch: int = 32, tries: int = 9, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ValueError(f"not a URL: {error}") from error
        if parsed.userinfo:  # it would end up in saved settings and reports
            raise ValueError(f"the URL of a moderation endpoint must carry no password; put a key into {KEY_VARIABLE}")
        if not is_url(url) or not parsed.host:
            raise ValueError(f"{url!r} is no URL of a moderation endpoint, as https://HOST/v1/moderations")
        self.url, self.batch, self.tries, self._sleep = url, batch, tries, sleep
        self.model: str | None = None  # as the service last called what it asked
        key = os.environ.get(KEY_VARIABLE)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(headers=headers, timeout=_TIMEOUT_SECONDS)

    @property
    def name(self) -> str:
        """The service's name for what answered, or its URL where it has told none (yet)."""
        return self.model or self.url

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Return `moderate(texts).probabilities`, float64 [len(texts), len(LABELS)]."""
        return self.moderate(texts).probabilities

    def flagged(self, texts: Sequence[str]) -> np.ndarray:
        """Return `moderate(texts).flagged`, bool [len(texts)]."""
        return self.moderate(texts).flagged

    def moderate(self, texts: Sequence[str], *, skip_refused: bool = False) -> Moderation:
        """Return what the service says of texts; one without visible text is not sent, and is not flagged.

        Args:
            texts: any.
            skip_refused: have NaN for a text that the service refuses, which is not flagged.

        Raises:
            TextRefusedError: the service refuses a text, unless such are skipped.
            TargetError: the service cannot be reached, refuses, or answers something else than moderations.
        """
        said = _nothing(len(texts))
        asked = [index for index, text in enumerate(texts) if text.strip()]  # services refuse the others
        done = 0
        while done < len(asked):
            rows = asked[done : done + self.batch]
            results: Sequence[_Result | None] | None = None
            if self.batch > 1:
                results = self._results([texts[index] for index in rows])
            if results is None:
                # One text may be at fault, or the list: then each text is taken alone.
                results = [self._result(texts[index], index, skip_refused) for index in rows]
                if None not in results:  # it was no text
                    self.batch = 1
            for index, result in zip(rows, results, strict=True):
                said.probabilities[index] = np.nan if result is None else _row(result)
                said.flagged[index] = result is not None and result.flagged
            done += len(rows)
        return said

    def _result(self, text: str, index: int, skip_refused: bool) -> _Result | None:
        """Return the result for one text, the one at `index` of those to be moderated; None if it is skipped."""
        response = self._post({"input": _sendable(text)})
        of_text = response.status_code in _TEXT_REFUSALS
        if of_text and skip_refused:
            return None
        if not response.is_success:
            # Of the text no more than what tells it apart.
            told = f"{self._refusal(response)}; that is text {index + 1}, of {len(text):,} characters"
            raise (TextRefusedError if of_text else TargetError)(told)
        results = self._read(response)
        if len(results) != 1:
            raise TargetError(f"{self.url} gives {len(results)} results for one text")
        return results[0]

    def _results(self, texts: list[str]) -> list[_Result] | None:
        """Return a result for each text; None if they were sent as a list and the service takes no such list."""
        response = self._post({"input": [_sendable(text) for text in texts]})
        if response.status_code in _TEXT_REFUSALS:
            return None
        if not response.is_success:
            raise TargetError(self._refusal(response))
        results = self._read(response)
        return results if len(results) == len(texts) else None  # else it reads a list as the parts of one message

    def _read(self, response: httpx.Response) -> list[_Result]:
        try:
            answer = _Answer.model_validate_json(response.content)
        except ValidationError as error:
            problem = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(str(part) for part in problem["loc"])
            raise TargetError(
                f"{self.url} does not answer as a moderation endpoint does ({where + ': ' if where else ''}"
                f"{problem['msg']}); {_HINTS[404]}"
            ) from None
        self.model = answer.model or self.model
        return answer.results

    def _post(self, body: dict[str, Any]) -> httpx.Response:
        """Return the answer to a request, whatever its status, trying again where that may help."""
        problem, asked = "", 0.0
        for attempt in range(self.tries):
            if attempt:
                backoff = min(_LONGEST_BACKOFF_SECONDS, 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.0)
                wait = max(backoff, asked)
                logger.warning("%s: %s; asking again in %.0f s", self.url, problem, wait)
                self._sleep(wait)
            try:
                response = self._client.post(self.url, json=body)
            except httpx.RequestError as error:
                problem, asked = type(error).__name__, 0.0
                continue
            unread = response.headers.get("Rayguard-Degraded")  # flagged, but nobody has read it
            if response.status_code not in (408, 429) and response.status_code < 500 and not unread:
                return response
            problem = f"what was not read ({unread})" if unread else _status(response)
            asked = _retry_after(response)
            if asked > _LONGEST_WAIT_SECONDS:
                raise TargetError(f"{self.url}: {problem}, and asks to wait for {asked:.0f} s; try again after that")
        raise TargetError(
            f"{self.url} failed {self.tries} times in a row, the last time with {problem}; see that it runs and can be "
            "reached from here, then try again"
        )

    def _refusal(self, response: httpx.Response) -> str:
        hint = _HINTS.get(response.status_code)
        if response.is_redirect:
            hint = "it sends elsewhere, where the key must not follow; give the final URL"
        return f"{self.url} refuses: {_status(response)}" + (f"; {hint}" if hint else "")


def is_url(target: str) -> bool:
    """Whether a target is a service, not a guard directory."""
    return target.lower().startswith(("http://", "https://"))


def open_guard(target: str) -> Guard | RemoteGuard:
    """Return the guard that a directory holds, or the service at a URL (which is not asked yet).

    Raises:
        ValueError: as `Guard.from_pretrained` and `RemoteGuard`.
    """
    return RemoteGuard(target) if is_url(target) else Guard.from_pretrained(target)


def moderation_of(guard: Guard | RemoteGuard, texts: Sequence[Readable], *, skip_refused: bool = False) -> Moderation:
    """Return what a guard or a service says of texts; a guard of ours decides by its stored threshold.

    A service is sent the prompt and the response of an exchange as one text; see `RemoteGuard.moderate`.

    Raises:
        TargetError: see `RemoteGuard.moderate`.
    """
    if isinstance(guard, RemoteGuard):
        return guard.moderate([str(text) for text in texts], skip_refused=skip_refused)
    probabilities = guard.probabilities(texts)
    return Moderation(probabilities, probabilities[:, 0] >= guard.card.thresholds[UNSAFE])


def unsafe_scores(guard: Guard | RemoteGuard, texts: Sequence[Readable]) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores of "unsafe", float64 [n] in [0, 1], and the decisions, bool [n], as `moderation_of`.

    See `Moderation` for the scores that a service gives; one is NaN, and not flagged, where it refuses the text.

    Raises:
        TargetError: see `RemoteGuard.moderate`.
    """
    said = moderation_of(guard, texts, skip_refused=True)
    return said.probabilities[:, 0], said.flagged


def _sendable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # half a surrogate pair has no UTF-8


def _nothing(count: int) -> Moderation:
    return Moderation(np.zeros((count, len(LABELS))), np.zeros(count, dtype=bool))


def _row(result: _Result) -> list[float]:
    scores = {key: score for key, score in result.category_scores.items() if score is not None}
    return [max(scores.values(), default=float(result.flagged)), *(scores.get(key, 0.0) for key in LABELS[1:])]


def _status(response: httpx.Response) -> str:
    # Of an error's body only its code: the message may quote the text.
    code = _ERROR_CODE.search(response.text)
    return f"HTTP {response.status_code}" + (f" ({code[1]})" if code else "")


def _retry_after(response: httpx.Response) -> float:
    """Return the seconds that Retry-After asks for, as a number or as a date; 0 where it says neither."""
    value = response.headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0

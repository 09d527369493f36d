"""A guard behind HTTP: asked as often as it takes. Texts leave this machine; they are never logged, nor is the key."""

import abc
import email.utils
import logging
import os
import random
import re
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import httpx
import numpy as np
from pydantic import BaseModel, ValidationError

from guardrail.kept_verdicts import KeptVerdicts, Verdict
from guardrail.reading import Exchange, Readable
from guardrail.taxonomy import LABELS
from guardrail.text import digest

logger = logging.getLogger(__name__)

_Model = TypeVar("_Model", bound=BaseModel)

#: The environment variable that holds the service's bearer key; a Ray actor reads that of its own process.
KEY_VARIABLE = "RAYGUARD_TARGET_KEY"
TEXT_REFUSALS = frozenset({400, 413, 422})  #: statuses of a service that takes other texts, or no list of them

_NOTHING_TO_READ = Verdict(False, {})
_LONGEST_BACKOFF_SECONDS = 30.0
_LONGEST_WAIT_SECONDS = 120.0  # that a service may ask for; a quota that is used up for today is a failure
_SILENCES = 3  # in a row that end the tries: each takes as long as an answer may
_ERROR_CODE = re.compile(r'"(?:code|type)"\s*:\s*"([\w.-]{1,60})"')


class Moderation(NamedTuple):
    """What a guard or a service says of n texts.

    Attributes:
        probabilities: float64 [n, len(LABELS)] in [0, 1]. The "unsafe" of a moderation endpoint is the highest score of
            all its categories, known here or not (where it scores none, its decision); of ours that a service does not
            have, 0.
        flagged: the decisions, bool [n].
        several_windows: whether a text was longer than the guard's window, bool [n]; None of a service, which hides it.
    """

    probabilities: np.ndarray
    flagged: np.ndarray
    several_windows: np.ndarray | None = None


class TargetError(ConnectionError):
    """A service cannot be measured; the message says why and what to do, and quotes no text."""


class TextRefusedError(TargetError):
    """A service refuses one text, sent by itself; it may answer others."""


class UnansweredError(TargetError):
    """A service has failed at a request again and again; where a text is at fault, it may answer others."""


class RemoteGuard(abc.ABC):
    """An endpoint with as much of `Guard`'s surface as measuring and attacking need.

    Its key, if it wants one, is in `KEY_VARIABLE`.

    Args:
        url: of the endpoint itself.
        tries: of a request that meets 408, 429, 5xx, a timeout or a broken connection; fewer where no answer comes in
            time three times in a row. Waits double from one second on, up to half a minute, with jitter, and are no
            shorter than Retry-After asks for: by default all together outlast a quota for the minute.
        sleep: waits some seconds.
        connections: at a time, at most.

    Raises:
        ValueError: the URL is none, or carries a password.
    """

    endpoint: str  #: such an endpoint's URL, for messages
    timeout = 60.0  #: seconds that an answer may take

    def __init__(
        self, url: str, *, tries: int = 9, sleep: Callable[[float], object] = time.sleep, connections: int = 1
    ) -> None:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ValueError(f"not a URL: {error}") from error
        if parsed.userinfo:  # it would end up in saved settings and reports
            raise ValueError(f"the URL of a service must carry no password; put a key into {KEY_VARIABLE}")
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ValueError(f"{url!r} is no URL of an endpoint such as {self.endpoint}")
        self.url, self.tries, self._sleep = url, tries, sleep
        self.model: str | None = None  # as the service last called what it asked
        self._has_answered = False  # before, whose verdicts it gives is not known
        self._kept: KeptVerdicts | None = None
        key = os.environ.get(KEY_VARIABLE)
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(self.timeout, connect=60.0, pool=None),
            limits=httpx.Limits(max_connections=connections),
        )

    @property
    def name(self) -> str:
        """The service's name for what answered, or its URL where it has told none (yet)."""
        return self.model or self.url

    def probabilities(self, texts: Sequence[Readable]) -> np.ndarray:
        """Return `moderate(texts).probabilities`, float64 [len(texts), len(LABELS)]."""
        return self.moderate(texts).probabilities

    def flagged(self, texts: Sequence[Readable]) -> np.ndarray:
        """Return `moderate(texts).flagged`, bool [len(texts)]."""
        return self.moderate(texts).flagged

    def remember(self, folder: Path) -> None:
        """Keep verdicts in a folder (`KeptVerdicts`) from now on, and ask for none that is there.

        What is there counts for a model of the same name behind the same URL, asked alike; to learn that name, one text
        may be asked again. Refusals are not kept: a service whose limits were at fault can be mended.
        """
        self._kept = KeptVerdicts(folder)
        if known := len(self._kept):
            logger.warning(
                "%s: %d verdicts in %s count; remove them if the service has changed", self.url, known, folder
            )

    def moderate(self, texts: Sequence[Readable], *, skip_refused: bool = False) -> Moderation:
        """Return what the service says of texts; one without visible text is not sent, and is not flagged.

        Args:
            texts: any.
            skip_refused: have NaN for a text that the service refuses, which is not flagged. One at which it fails
                whenever it is asked, and answers another, counts as such.

        Raises:
            TextRefusedError: the service refuses a text, unless such are skipped.
            TargetError: the service cannot be reached, refuses, or answers something else than it should.
        """
        places = [place for place, text in enumerate(texts) if str(text).strip()]  # services refuse the others
        verdicts: dict[int, Verdict | None] = {}

        def ask(asked: Sequence[int]) -> None:
            if asked:
                verdicts.update(zip(asked, self._judged(texts, asked, skip_refused), strict=True))

        if self._kept:  # there are some
            while places and not self._has_answered:
                ask([places.pop(0)])
            for place in places:
                if verdict := self._kept.get(self._key(texts[place])):
                    verdicts[place] = verdict
        ask([place for place in places if place not in verdicts])
        return _moderation([verdicts.get(place, _NOTHING_TO_READ) for place in range(len(texts))])

    def known(self, texts: Sequence[Readable]) -> Moderation:
        """Return what is kept of what the service has said of texts (`remember`); of the others NaN, not flagged."""
        kept = self._kept
        return _moderation([kept.get(self._key(text)) if kept else None for text in texts])

    @abc.abstractmethod
    def _judged(self, texts: Sequence[Readable], places: Sequence[int], skip_refused: bool) -> Sequence[Verdict | None]:
        """Return the verdict on the text at each of the places, having `_keep` each as it comes; None: it is skipped.

        Raises:
            TargetError: see `moderate`.
        """

    @abc.abstractmethod
    def _verdict(self, text: Readable, place: int, skip_refused: bool) -> Verdict | None:
        """Return the verdict on one text, the one at `place` of those to be moderated; None if it is skipped."""

    def _verdict_or_failure(self, text: Readable, place: int, skip_refused: bool) -> Verdict | None:
        """Return `_verdict`; None, too, if texts are skipped and it is this one at which the service fails."""
        try:
            return self._verdict(text, place, skip_refused)
        except UnansweredError as error:
            if not skip_refused:
                raise
            self._ask_another(error)
            return None

    def _ask_another(self, error: UnansweredError) -> None:
        """Raise an error if the service gives no verdict on a harmless text either: then no text is at fault."""
        try:
            # No cache on the way has that.
            self._verdict(f"How do I bake bread at home? ({uuid.uuid4().hex[:8]})", 0, False)
        except TargetError:
            raise error from None

    @property
    def _way(self) -> str:
        """How the service is asked, where there are several ways."""
        return ""

    def _keep(self, text: Readable, verdict: Verdict) -> Verdict:
        self._has_answered = True
        if self._kept is not None:
            self._kept.add(self._key(text), verdict)
        return verdict

    def _key(self, text: Readable) -> str:
        parts = (text.prompt, text.response) if isinstance(text, Exchange) else (text,)
        return digest(self.url, self._way, self.model or "", *parts)

    @property
    def hint(self) -> str:
        """What is most often the matter with an endpoint that is none."""
        return f"the URL is that of the endpoint itself, as {self.endpoint}"

    def post(self, body: dict[str, Any]) -> httpx.Response:
        """Return the answer to a request, whatever its status, trying again where that may help.

        Raises:
            UnansweredError: it has not helped, though the request has come through.
            TargetError: it has not.
        """
        return self._answered(lambda: self._client.post(self.url, json=body))

    def get(self, url: str) -> httpx.Response:
        """Return what another address of the service answers; see `post`."""
        return self._answered(lambda: self._client.get(url))

    def _answered(self, request: Callable[[], httpx.Response]) -> httpx.Response:
        problem, asked, kind, silences = "", 0.0, TargetError, 0
        for attempt in range(self.tries):
            if attempt:
                backoff = min(_LONGEST_BACKOFF_SECONDS, 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.0)
                wait = max(backoff, asked)
                logger.warning("%s: %s; asking again in %.0f s", self.url, problem, wait)
                self._sleep(wait)
            try:
                response = request()
            except httpx.RequestError as error:
                problem, asked = type(error).__name__, 0.0
                kind = TargetError if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) else UnansweredError
                silences = silences + 1 if isinstance(error, httpx.ReadTimeout) else 0
                if silences == _SILENCES:
                    break
                continue
            silences = 0
            unread = response.headers.get("Rayguard-Degraded")  # flagged, but nobody has read it
            if response.status_code not in (408, 429) and response.status_code < 500 and not unread:
                return response
            problem = f"what was not read ({unread})" if unread else _status(response)
            kind = TargetError if response.status_code == 429 else UnansweredError  # a quota is no text's fault
            asked = _retry_after(response)
            if asked > _LONGEST_WAIT_SECONDS:
                raise TargetError(f"{self.url}: {problem}, and asks to wait for {asked:.0f} s; try again after that")
        raise kind(
            f"{self.url} failed {attempt + 1} times in a row, the last time with {problem}; see that it runs and can "
            "be reached from here, then try again"
        )

    def read(self, response: httpx.Response, answer: type[_Model]) -> _Model:
        """Return what an answer says.

        Raises:
            TargetError: it is none of this kind.
        """
        try:
            return answer.model_validate_json(response.content)
        except ValidationError as error:
            problem = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(str(part) for part in problem["loc"])
            raise TargetError(
                f"{self.url} does not answer as such an endpoint does ({where + ': ' if where else ''}"
                f"{problem['msg']}); {self.hint}"
            ) from None

    def refusal(self, response: httpx.Response) -> str:
        """Return why the service gives no answer, and what to do."""
        hints = {
            401: f"put the service's key into {KEY_VARIABLE}",
            403: f"put a key that may ask it into {KEY_VARIABLE}",
            404: self.hint,
            405: self.hint,
        }
        hint = hints.get(response.status_code)
        if response.is_redirect:
            hint = "it sends elsewhere, where the key must not follow; give the final URL"
        return f"{self.url} refuses: {_status(response)}" + (f"; {hint}" if hint else "")


def _moderation(verdicts: Sequence[Verdict | None]) -> Moderation:
    """Return verdicts as arrays; NaN, not flagged, where there is none."""
    said = Moderation(np.zeros((len(verdicts), len(LABELS))), np.zeros(len(verdicts), dtype=bool))
    for place, verdict in enumerate(verdicts):
        scores = {} if verdict is None else verdict.scores
        said.probabilities[place] = np.nan if verdict is None else [scores.get(label, 0.0) for label in LABELS]
        said.flagged[place] = verdict is not None and verdict.flagged
    return said


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

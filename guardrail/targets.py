"""Guards of ours, by directory, and anybody's, by URL, asked alike: to be measured, attacked, or learned from."""

import re
from collections.abc import Sequence

import numpy as np

from guardrail.backends import BackendName
from guardrail.chat_guard import ChatGuard
from guardrail.guard import Guard
from guardrail.judge_formats import judge_format
from guardrail.moderation_endpoint import ModerationEndpoint
from guardrail.reading import Readable
from guardrail.remote import Moderation, RemoteGuard
from guardrail.taxonomy import UNSAFE

_URL = re.compile(r"(?:([\w-]+)\+)?(https?://.*)", re.IGNORECASE | re.DOTALL)


def is_url(target: str) -> bool:
    """Whether a target is a service, not a guard directory."""
    return _URL.fullmatch(target) is not None


def open_guard(target: str, backend: BackendName = "torch") -> Guard | RemoteGuard:
    """Return the guard that a directory holds, or the service at a URL (which is not asked yet).

    A URL is that of a moderation endpoint, or, behind the format of a guard model and "+", that of an endpoint which
    completes chats: qwen3guard+https://HOST/v1/chat/completions. Of several models there "#" and a name, at its end,
    say which. `backend` is what computes a directory's guard.

    Raises:
        ValueError: as `Guard.from_pretrained`, `ModerationEndpoint` and `ChatGuard`; or a backend is named for a URL.
    """
    if not (service := _URL.fullmatch(target)):
        return Guard.from_pretrained(target, backend=backend)
    if backend != "torch":
        raise ValueError(f"the backend {backend} is for guard directories: what computes a service is its own affair")
    format_, url = service.groups()
    return ChatGuard(url, judge_format(format_)) if format_ else ModerationEndpoint(url)


def moderation_of(guard: Guard | RemoteGuard, texts: Sequence[Readable], *, skip_refused: bool = False) -> Moderation:
    """Return what a guard or a service says of texts; a guard of ours decides by its stored threshold.

    Raises:
        TargetError: see `RemoteGuard.moderate`.
    """
    if isinstance(guard, RemoteGuard):
        return guard.moderate(texts, skip_refused=skip_refused)
    prepared = guard.prepare(texts)
    probabilities = guard.calibrated(guard.read(prepared))
    return Moderation(
        probabilities,
        flagged=probabilities[:, 0] >= guard.card.thresholds[UNSAFE],
        several_windows=np.array([each.several_windows for each in prepared], dtype=bool),
    )


def unsafe_scores(guard: Guard | RemoteGuard, texts: Sequence[Readable]) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores of "unsafe", float64 [n] in [0, 1], and the decisions, bool [n], as `moderation_of`.

    See `Moderation` for the scores that a service gives; one is NaN, and not flagged, where it refuses the text.

    Raises:
        TargetError: see `RemoteGuard.moderate`.
    """
    said = moderation_of(guard, texts, skip_refused=True)
    return said.probabilities[:, 0], said.flagged


def known_scores(guard: Guard | RemoteGuard, texts: Sequence[Readable]) -> tuple[np.ndarray, np.ndarray]:
    """Return what a service said before `unsafe_scores` failed, in the same form; NaN, not flagged, where nothing."""
    assert isinstance(guard, RemoteGuard)  # no other fails
    said = guard.known(texts)
    return said.probabilities[:, 0], said.flagged

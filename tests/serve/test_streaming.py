"""A response that is judged while it is written: what is shown does not depend on how it is cut."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from guardrail.answers import StreamResponse
from guardrail.guard import Verdict
from guardrail.guard_card import GuardCard
from guardrail.policy import GUARDS_OWN, guards_own
from guardrail.reading import Exchange, Readable
from guardrail.taxonomy import CATEGORIES
from serve.moderation import MAX_INPUTS, RequestRefused
from serve.streaming import HOLD_BACK, REACH, STEP, StreamRequest, stream_response

CARD = GuardCard(version="v1", digest="d", temperature=1.0, thresholds={"unsafe": 0.5}, window=8)


def judged(texts: Sequence[Readable]) -> list[Verdict]:
    """A guard that finds texts unsafe that have an exclamation mark."""
    return [Verdict("!" in str(text), float("!" in str(text)), dict.fromkeys(CATEGORIES, 0.0)) for text in texts]


def answer(response: str, checked: int, done: bool) -> StreamResponse:
    request = StreamRequest(response=response, checked=checked, done=done)
    return stream_response(request, judged(request.texts()), CARD, GUARDS_OWN, guards_own(0.5))


def shown(response: str, cuts: Sequence[int]) -> tuple[str, int | None]:
    """What a client shows of a response that comes in pieces, and where it is stopped."""
    checked = released = 0
    for end in [*sorted(min(cut, len(response)) for cut in cuts), len(response)]:
        got = answer(response[:end], checked, done=False)
        released, checked = max(released, got.release), got.checked
        if got.stop_at is not None:
            return response[:released], got.stop_at
    got = answer(response, checked, done=True)
    return response[: max(released, got.release)], got.stop_at


@given(st.text("ab !", max_size=900), st.lists(st.integers(0, 900), max_size=8))
def test_the_outcome_is_the_same_however_a_response_is_cut(response: str, cuts: list[int]) -> None:
    whole = answer(response, 0, done=True)
    text, stop_at = shown(response, cuts)
    assert stop_at == whole.stop_at
    if stop_at is None:
        assert text == response and "!" not in response
    else:
        # Nothing of the piece that is judged unsafe is shown.
        assert text == response[:stop_at] and "!" not in text


@given(st.integers(0, 10 * STEP), st.booleans())
def test_what_is_shown_is_held_back_until_the_end(length: int, done: bool) -> None:
    got = answer("a" * length, 0, done)
    assert got.stop_at is None and got.next > length - (length % STEP)
    assert got.release == length if done else got.release == max(0, length // STEP * STEP - HOLD_BACK)


def test_each_checkpoint_reads_the_last_characters_behind_the_prompt() -> None:
    request = StreamRequest(prompt="Why?", response="x" * (REACH + 3 * STEP), checked=REACH + STEP)
    assert request.texts() == [Exchange("Why?", "x" * REACH)] * 2


@pytest.mark.parametrize(
    ("prompt", "length"), [(None, (MAX_INPUTS + 1) * STEP), ("x" * 100_000, 41 * STEP), ("x" * 4_000_000, 4_000_000)]
)
def test_what_would_fill_the_memory_is_refused_before_it_is_made(prompt: str | None, length: int) -> None:
    with pytest.raises(RequestRefused, match="Ask more often"):
        StreamRequest(prompt=prompt, response="y" * length).texts()
    assert len(StreamRequest(prompt=prompt, response="y" * length, checked=length - STEP).texts()) == 1


def test_more_checked_than_there_is_is_refused() -> None:
    with pytest.raises(ValidationError, match="send the whole response so far"):
        StreamRequest(response="new words", checked=500)

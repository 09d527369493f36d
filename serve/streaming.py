"""`POST /v1/guard/stream`: a response is judged while it is written, before people see it.

The client sends the response so far, and what the last answer said was checked; the service keeps nothing, so any
replica can answer. Checkpoints lie every `STEP` characters, and at the end once it is `done`; at each the guard reads
the last `REACH` characters behind the prompt. What may be shown ends `HOLD_BACK` characters before the last checkpoint:
what is judged unsafe began before the words that gave it away. So the outcome is the same however the response is cut.
Pure, as `serve.native`.
"""

from collections.abc import Sequence
from typing import Self

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from guardrail.answers import StreamResponse
from guardrail.guard import Verdict
from guardrail.guard_card import GuardCard
from guardrail.policy import Decision, Policy, strictest
from guardrail.reading import Exchange, Readable
from serve.degraded import Failure
from serve.moderation import MAX_INPUTS, Body, RequestRefused, Text, model_name
from serve.native import MOST_REPEATED

STEP = 128
REACH = 1024
HOLD_BACK = 128


class StreamRequest(Body):
    """The body of `POST /v1/guard/stream`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "What is in this tea?", "response": "Green tea", "done": False}]},
    )

    prompt: Text | None = None
    response: Text = Field(description="what has been written so far, from its beginning")
    checked: int = Field(0, ge=0, description="`checked` of the last answer")
    done: bool = Field(False, description="whether the response ends here")
    policy: str | None = None

    @model_validator(mode="after")
    def _check_checked(self) -> Self:
        if self.checked > len(self.response):
            raise PydanticCustomError(
                "invalid_form", "'checked' is beyond the response: send the whole response so far, not what is new."
            )
        return self

    def checkpoints(self) -> list[int]:
        """Return the checkpoints, in characters of the response, that are reached and not yet checked."""
        length = len(self.response)
        reached = list(range((self.checked // STEP + 1) * STEP, length + 1, STEP))
        if self.done and length > 0 and length % STEP and length > self.checked:
            reached.append(length)
        return reached

    def texts(self) -> list[Readable]:
        """Return what the guard is shown, a text for each checkpoint.

        Raises:
            RequestRefused: they are too many, or too long together with the prompt, which each of them has before it.
        """
        count = len(self.checkpoints())
        if count > MAX_INPUTS or count * len(self.prompt or "") > MOST_REPEATED:
            raise RequestRefused(
                f"There are {count} checkpoints to read, each behind the prompt; a request may have {MAX_INPUTS}, and "
                f"{MOST_REPEATED:,} characters of repeated prompt. Ask more often, and send 'checked'.",
                param="response",
                code="response_too_long",
            )
        read = [self.response[max(0, end - REACH) : end] for end in self.checkpoints()]
        return [each if self.prompt is None else Exchange(self.prompt, each) for each in read]


def stream_response(
    request: StreamRequest,
    verdicts: Sequence[Verdict],
    card: GuardCard,
    name: str,
    policy: Policy,
    *,
    degraded: Failure | None = None,
) -> StreamResponse:
    """Return the answer from the verdicts on `request.texts()`; see `serve.native.guard_response`."""
    checked, stop_at = request.checked, None
    decisions = [Decision("allow", ())]
    for end, verdict in zip(request.checkpoints(), verdicts, strict=True):
        decisions.append(policy.decide(verdict.scores))
        if decisions[-1].action == "block":
            stop_at = _shown(checked)
            break
        checked = end
    decision = strictest(decisions)
    finished = request.done and checked == len(request.response)
    return StreamResponse(
        model=model_name(card.version),
        digest=card.digest,
        policy=name,
        action=decision.action,
        reasons=list(decision.reasons),
        score=max((verdict.score for verdict in verdicts), default=0.0),
        checked=checked,
        release=checked if finished else _shown(checked),
        next=(checked // STEP + 1) * STEP,
        stop_at=stop_at,
        degraded=degraded,
    )


def _shown(checked: int) -> int:
    return max(0, checked // STEP * STEP - HOLD_BACK)

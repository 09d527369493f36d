"""The native contract, `POST /v1/guard`: a prompt, a prompt with its response, or a conversation.

Pure, as `serve.moderation`. Each message is judged by itself, an answer behind what it answers; the most unsafe one
decides.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Self
from uuid import uuid4

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from guardrail.answers import GuardResponse, PartResult, SpanResult
from guardrail.guard import Verdict
from guardrail.guard_card import GuardCard
from guardrail.policy import Policy, strictest
from guardrail.reading import Exchange, Readable, messages_read
from serve.degraded import Failure
from serve.moderation import MAX_INPUTS, Body, RequestRefused, Text, model_name

MOST_REPEATED = 4_000_000  # characters: a prompt is read again with each answer to it


class Message(Body):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text


class GuardRequest(Body):
    """The body of `POST /v1/guard`: `prompt`, with or without `response`, or `messages`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "How do I kill a Python process?"},
                {"prompt": "What is in this tea?", "response": "Green tea leaves and jasmine."},
                {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good morning!"}]},
            ]
        },
    )

    prompt: Text | None = None
    response: Text | None = None
    messages: list[Message] | None = Field(None, min_length=1, max_length=MAX_INPUTS)
    policy: str | None = Field(None, description="by which the action is chosen; by default the key's or the service's")

    @model_validator(mode="after")
    def _check_form(self) -> Self:
        if (self.prompt is None) == (self.messages is None) or (self.response is not None and self.prompt is None):
            raise PydanticCustomError(
                "invalid_form", "Give either 'prompt', with or without 'response', or 'messages'; not both."
            )
        return self

    def read(self) -> list["Read"]:
        """Return what the guard is shown, in the order of the request."""
        if self.prompt is not None:
            prompt = Read("prompt", self.prompt)
            if self.response is None:
                return [prompt]
            return [prompt, Read("response", Exchange(self.prompt, self.response))]
        return list(of_messages(self.messages or ()))


class Read(NamedTuple):
    """What the guard is shown, and which part of the request that judges."""

    part: str
    text: Readable


def guard_response(
    read: Sequence[Read],
    verdicts: Sequence[Verdict],
    card: GuardCard,
    name: str,
    policy: Policy,
    *,
    degraded: Failure | None = None,
) -> GuardResponse:
    """Return the whole answer, one part for each text that was read.

    Args:
        read: what the guard was shown.
        verdicts: on each of these.
        card: of the guard that gave them.
        name, policy: by which the action is chosen.
        degraded: why the guard did not give them, where it did not.
    """
    decision = strictest(policy.decide(verdict.scores) for verdict in verdicts)
    return GuardResponse(
        id=f"guard-{uuid4().hex}",
        model=model_name(card.version),
        digest=card.digest,
        unsafe=any(verdict.unsafe for verdict in verdicts),
        policy=name,
        action=decision.action,
        reasons=list(decision.reasons),
        score=max(verdict.score for verdict in verdicts),
        threshold=card.thresholds["unsafe"],
        categories={key: max(verdict.categories[key] for verdict in verdicts) for key in card.taxonomy},
        parts=[_part(each.part, verdict, policy) for each, verdict in zip(read, verdicts, strict=True)],
        degraded=degraded,
    )


def _part(name: str, verdict: Verdict, policy: Policy) -> PartResult:
    """Return what is said of a part; its spans are what the policy would not allow by itself."""
    return PartResult(
        part=name,
        unsafe=verdict.unsafe,
        score=verdict.score,
        spans=[
            SpanResult(start=span.start, end=span.end, score=span.score, disguised=span.disguised)
            for span in verdict.judged
            if policy.decide(span.scores).action != "allow"
        ],
        said=verdict.said,
        decoded=list(verdict.decoded),
        prompt_cut=verdict.prompt_cut,
    )


def of_messages(messages: Sequence[Message]) -> Iterator[Read]:
    """Yield what the guard is shown of a conversation, an answer behind what was asked last.

    Raises:
        RequestRefused: a long prompt would have to be read with too many answers.
    """
    repeated = 0
    for index, reading in enumerate(messages_read([{"role": each.role, "content": each.content} for each in messages])):
        repeated += len(reading.prompt) if isinstance(reading, Exchange) else 0  # once for each answer
        if repeated > MOST_REPEATED:
            raise RequestRefused(
                f"The answers' prompts have more than {MOST_REPEATED:,} characters together; send fewer messages.",
                param="messages",
                code="conversation_too_long",
            )
        yield Read(f"messages[{index}]", reading)

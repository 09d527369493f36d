"""The native contract, `POST /v1/guard`: a prompt, a prompt with its response, or a conversation.

Pure, as `serve.moderation`. Each message is judged by itself, an answer behind what it answers; the most unsafe one
decides.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Self
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from guardrail.guard import GuardCard, Verdict
from guardrail.text import joined
from serve.moderation import MAX_INPUTS, RequestRefused, Text, model_name

_MOST_REPEATED = 4_000_000  # characters: a prompt is read again with each answer to it


class Message(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text


class GuardRequest(BaseModel):
    """The body of `POST /v1/guard`: `prompt`, with or without `response`, or `messages`."""

    model_config = ConfigDict(
        extra="forbid",
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
            prompt = Read("prompt", self.prompt, 0)
            return [prompt] if self.response is None else [prompt, _answer("response", self.prompt, self.response)]
        return list(_of_messages(self.messages or ()))


class Read(NamedTuple):
    """A text that the guard is shown: which part of the request it judges, and where in the text that part begins."""

    part: str
    text: str
    start: int


class SpanResult(BaseModel):
    """Characters of a part that are unsafe by themselves; `disguised`: characters of `said`."""

    start: int
    end: int
    score: float
    disguised: bool


class PartResult(BaseModel):
    """What the guard says of one part; `said`: what it says in plain letters where it is disguised.

    A response is read behind its prompt: `said` and disguised spans are of both. Its other spans are of the response;
    where it is unsafe without any, the prompt is.
    """

    part: str = Field(description="prompt, response or messages[i]")
    unsafe: bool
    score: float
    spans: list[SpanResult]
    said: str | None


class GuardResponse(BaseModel):
    """The answer to `POST /v1/guard`; scores are calibrated probabilities, those of the most unsafe part."""

    id: str
    model: str
    digest: str = Field(description="of the guard that answered")
    unsafe: bool
    action: Literal["allow", "block"]
    score: float
    threshold: float = Field(description="score from which a part is unsafe")
    categories: dict[str, float]
    parts: list[PartResult]


def guard_response(read: Sequence[Read], verdicts: Sequence[Verdict], card: GuardCard) -> GuardResponse:
    """Return the whole answer, one part for each text that was read."""
    unsafe = any(verdict.unsafe for verdict in verdicts)
    return GuardResponse(
        id=f"guard-{uuid4().hex}",
        model=model_name(card.version),
        digest=card.digest,
        unsafe=unsafe,
        action="block" if unsafe else "allow",
        score=max(verdict.score for verdict in verdicts),
        threshold=card.thresholds["unsafe"],
        categories={key: max(verdict.categories[key] for verdict in verdicts) for key in card.taxonomy},
        parts=[_part(*each) for each in zip(read, verdicts, strict=True)],
    )


def _part(read: Read, verdict: Verdict) -> PartResult:
    spans = [
        # What was read in plain letters has other places than the text: it is told as it is.
        SpanResult(start=span.start, end=span.end, score=span.score, disguised=True)
        if span.disguised
        else SpanResult(
            start=max(0, span.start - read.start), end=span.end - read.start, score=span.score, disguised=False
        )
        for span in verdict.spans
        if span.disguised or span.end > read.start
    ]
    return PartResult(part=read.part, unsafe=verdict.unsafe, score=verdict.score, spans=spans, said=verdict.said)


def _of_messages(messages: Sequence[Message]) -> Iterator[Read]:
    asked: str | None = None
    read = 0
    for index, message in enumerate(messages):
        part = f"messages[{index}]"
        if message.role == "assistant" and asked is not None:
            read += len(asked)  # once for each answer
            if read > _MOST_REPEATED:
                raise RequestRefused(
                    f"The answers' prompts have more than {_MOST_REPEATED:,} characters together; send fewer messages.",
                    param="messages",
                    code="conversation_too_long",
                )
            yield _answer(part, asked, message.content)
            continue
        if message.role == "user":
            asked = message.content
        yield Read(part, message.content, 0)


def _answer(part: str, asked: str, answer: str) -> Read:
    text = joined(asked, answer)
    return Read(part, text, len(text) - len(answer))

"""What the service answers in its own contract: written by `serve.native` and `serve.streaming`, read by the client."""

from typing import Literal

from pydantic import BaseModel, Field

from guardrail.policy import Action


class SpanResult(BaseModel):
    """Characters of a part that the policy would not allow by themselves; `disguised`: characters of `said`."""

    start: int
    end: int
    score: float
    disguised: bool


class PartResult(BaseModel):
    """What the guard says of one part; `said`: what it says in plain letters where it is disguised.

    Of several disguised readings `said` is the most unsafe one, and the others have no spans.
    A response is read behind its prompt, and judged by what it says there; its spans and `said` are its own.
    """

    part: str = Field(description="prompt, response or messages[i]")
    unsafe: bool
    score: float
    spans: list[SpanResult]
    said: str | None
    decoded: list[str] = Field(description="steps from the text to what it says, as base_64 or look_alike")
    prompt_cut: int = Field(0, description="tokens of the prompt that were not read with a response too long for both")


class GuardResponse(BaseModel):
    """The answer to `POST /v1/guard`; scores are calibrated probabilities, those of the most unsafe part."""

    id: str
    model: str
    digest: str = Field(description="of the guard that answered")
    unsafe: bool = Field(description="the guard's own decision, whatever the policy")
    policy: str = Field(description='that the action is by; "guard": the guard\'s own')
    action: Action
    reasons: list[str] = Field(description="labels that the action is due to")
    score: float
    threshold: float = Field(description="score from which the guard finds a part unsafe")
    categories: dict[str, float]
    parts: list[PartResult]
    degraded: str | None = Field(None, description="why the guard did not judge this, where it did not; it is blocked")
    truncated: Literal[False] = Field(False, description="parts of any length are read, in overlapping windows")


class StreamResponse(BaseModel):
    """The answer to `POST /v1/guard/stream`; `score` is the highest of what was read now."""

    model: str
    digest: str = Field(description="of the guard that answered")
    policy: str
    action: Action
    reasons: list[str] = Field(description="labels that the action is due to")
    score: float
    checked: int = Field(description="characters judged so far; send it with the next request")
    release: int = Field(description="characters that may be shown")
    next: int = Field(description="length of the response from which asking again tells more")
    stop_at: int | None = Field(description="character from which nothing may be shown; null: go on")
    degraded: str | None = Field(None, description="why the guard did not judge this, where it did not; it is blocked")

"""Perspective's contract, `POST /v1alpha1/comments:analyze`, for its users, whose service ends with 2026.

Pure, as `serve.moderation`. The contract is that of https://developers.perspectiveapi.com and its discovery document.
An attribute's score is the highest of our categories that mean it (`ATTRIBUTES`): calibrated probabilities of this
guard, so thresholds that were set on Perspective's scores have to be set anew. Nothing is stored, no language detected.
"""

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Literal

from pydantic import ConfigDict, Field, FiniteFloat
from pydantic.alias_generators import to_camel

from guardrail.guard import Verdict
from serve.moderation import MAX_INPUTS, Body, ErrorBody, RequestRefused, Text

PATH = "/v1alpha1/comments:analyze"
#: Our categories that mean an attribute of Perspective's. None means PROFANITY, FLIRTATION, or those for the New York
#: Times. SEVERE_TOXICITY, "very hateful, aggressive", and THREAT are the same here.
ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "TOXICITY": ("harassment", "harassment/threatening", "hate", "hate/threatening"),
    "SEVERE_TOXICITY": ("harassment/threatening", "hate/threatening"),
    "IDENTITY_ATTACK": ("hate", "hate/threatening"),
    "INSULT": ("harassment",),
    "THREAT": ("harassment/threatening", "hate/threatening"),
    "SEXUALLY_EXPLICIT": ("sexual", "sexual/minors"),
}
_ERROR_TYPES = frozenset({"COMMENT_EMPTY", "NO_REQUESTED_ATTRIBUTES", "COMMENT_TOO_LONG"})
_STATUSES = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}
_ASTRAL = re.compile("[\U00010000-\U0010ffff]")  # two UTF-16 code units each
_SENTENCE = re.compile(r"\S[^.!?。！？\n]*[.!?。！？]*")


class _Contract(Body):
    """JSON as Google's APIs have it: camelCase, or the fields' own names."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class Comment(_Contract):
    """The text to score."""

    text: Text = ""
    type: Literal["PLAIN_TEXT", "TEXT_TYPE_UNSPECIFIED"] | None = None


class AttributeParameters(_Contract):
    """What is wanted of an attribute; scores under the threshold are left out."""

    score_type: Literal["PROBABILITY", "SCORE_TYPE_UNSPECIFIED"] | None = None
    score_threshold: FiniteFloat | None = None


class AnalyzeRequest(_Contract):
    """The body of the request; context, session and community are taken and not read, as Perspective does."""

    comment: Comment = Comment()
    requested_attributes: dict[str, AttributeParameters] = Field(
        default={}, max_length=MAX_INPUTS, examples=[{"TOXICITY": {}, "INSULT": {"scoreThreshold": 0.5}}]
    )
    languages: list[Text] | None = Field(None, max_length=MAX_INPUTS)
    do_not_store: bool | None = None
    span_annotations: bool | None = Field(None, description="a score for each sentence, too")
    drop_unsupported_attributes: bool | None = Field(None, description="leave them out, rather than refuse")
    client_token: Text | None = None
    session_id: str | None = None
    community_id: str | None = None
    context: dict[str, Any] | None = None

    def attributes(self) -> dict[str, AttributeParameters]:
        """Return the requested attributes that are served.

        Raises:
            RequestRefused: there is no text, no attribute, or one that is not served.
        """
        if not self.comment.text:
            raise RequestRefused("Comment must be non-empty.", code="COMMENT_EMPTY")
        if not self.requested_attributes:
            raise RequestRefused("Missing requested_attributes.", code="NO_REQUESTED_ATTRIBUTES")
        unknown = [name for name in self.requested_attributes if name not in ATTRIBUTES]
        if unknown and not self.drop_unsupported_attributes:
            raise RequestRefused(f"Unknown requested attribute: {unknown[0]!r}. Served here: {', '.join(ATTRIBUTES)}.")
        return {name: wanted for name, wanted in self.requested_attributes.items() if name in ATTRIBUTES}

    def spans(self) -> list[tuple[int, int]]:
        """Return begin and end of what is scored: of the whole comment, then of its sentences where these are wanted.

        Raises:
            RequestRefused: there are too many.
        """
        text = self.comment.text
        found = _SENTENCE.finditer(text) if self.span_annotations else ()
        sentences = [match.span() for match in islice(found, MAX_INPUTS + 1)]
        if len(sentences) > MAX_INPUTS:
            raise RequestRefused(f"The comment has more than {MAX_INPUTS} sentences; ask without spanAnnotations.")
        return [(0, len(text)), *(sentences if len(sentences) > 1 else ())]


class Score(_Contract):
    """A calibrated probability."""

    value: float
    type: Literal["PROBABILITY"] = "PROBABILITY"


class SpanScore(_Contract):
    """The score of a part of the comment, in UTF-16 code units, as Perspective counts."""

    begin: int
    end: int
    score: Score


class AttributeScores(_Contract):
    """The scores of an attribute: of the whole comment, and of its parts."""

    span_scores: list[SpanScore]
    summary_score: Score


class AnalyzeResponse(_Contract):
    """The answer; `languages` are those of the request, absent fields are left out."""

    attribute_scores: dict[str, AttributeScores] | None = None
    languages: list[str] | None = None
    client_token: str | None = None


def analyze_response(request: AnalyzeRequest, verdicts: Sequence[Verdict]) -> AnalyzeResponse:
    """Return the answer from the verdicts on `request.spans()`."""
    text, spans = request.comment.text, request.spans()
    astral = [match.start() for match in _ASTRAL.finditer(text)]
    units = [tuple(place + bisect_left(astral, place) for place in span) for span in spans]
    # The whole comment is a span only where there are no others.
    first = 1 if len(spans) > 1 else 0
    scores = {}
    for name, wanted in request.attributes().items():
        least = wanted.score_threshold or 0.0
        values = [max(verdict.categories[key] for key in ATTRIBUTES[name]) for verdict in verdicts]
        if values[0] >= least:
            scores[name] = AttributeScores(
                span_scores=[
                    SpanScore(begin=begin, end=end, score=Score(value=value))
                    for (begin, end), value in zip(units[first:], values[first:], strict=True)
                    if value >= least
                ],
                summary_score=Score(value=values[0]),
            )
    return AnalyzeResponse(
        attribute_scores=scores or None, languages=request.languages, client_token=request.client_token
    )


class ErrorInfo(_Contract):
    """What Perspective calls an error of the request."""

    kind: Literal["type.googleapis.com/google.commentanalyzer.v1alpha1.Error"] = Field(
        "type.googleapis.com/google.commentanalyzer.v1alpha1.Error", alias="@type"
    )
    error_type: str


class GoogleErrorDetail(_Contract):
    """What went wrong, as Google's APIs say it."""

    code: int
    message: str
    status: str
    details: list[ErrorInfo] | None = None


class GoogleErrorBody(_Contract):
    """The body of every answer of this route that is no success."""

    error: GoogleErrorDetail


def google_error(status: int, body: ErrorBody) -> GoogleErrorBody:
    """Return an error of the service in Google's shape."""
    details = None
    if status in (400, 413):
        known = "COMMENT_TOO_LONG" if status == 413 else body.error.code
        details = [ErrorInfo(error_type=known if known in _ERROR_TYPES else "INVALID_REQUEST")]
    name = _STATUSES.get(status, "INVALID_ARGUMENT")
    return GoogleErrorBody(
        error=GoogleErrorDetail(code=status, message=body.error.message, status=name, details=details)
    )

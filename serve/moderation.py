"""OpenAI's moderation contract: what a request may hold, what an answer and an error look like.

Pure: knows the taxonomy and the guard's verdict, nothing of HTTP servers, Ray or models. The contract is that of
https://platform.openai.com/docs/api-reference/moderations as the official `openai` client reads it.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NoReturn
from uuid import uuid4

from pydantic import AfterValidator, BaseModel, ConfigDict, Strict, field_validator, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from guardrail.guard import Verdict
from guardrail.taxonomy import OPENAI_CATEGORIES, TO_OPENAI, UNSAFE

MODEL = "rayguard"
#: Names that clients of OpenAI send, mostly without knowing: they ask for the guard in use.
OPENAI_MODELS: frozenset[str] = frozenset(
    {
        "omni-moderation-latest",
        "omni-moderation-2024-09-26",
        "text-moderation-latest",
        "text-moderation-stable",
        "text-moderation-007",
    }
)
MAX_INPUTS = 1024  # texts or parts in one request: some seconds of work for a small guard on a few cores

#: Which of our categories answer under each of OpenAI's keys.
_SOURCES: Mapping[str, tuple[str, ...]] = {
    key: tuple(ours for ours, theirs in TO_OPENAI.items() if theirs == key) for key in OPENAI_CATEGORIES
}


class Body(BaseModel):
    """What a request says; a key that is not known is refused, the first one alone: a body may have a million."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _one_unknown(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        known = {*cls.model_fields, *(field.alias for field in cls.model_fields.values())}
        unknown = next((key for key in value if key not in known), None)
        return {key: each for key, each in value.items() if key in known or key == unknown}


class TextPart(Body):
    """One part of a message, as the multi-modal form of the request has it."""

    type: Literal["text"]
    text: str


class ModerationRequest(Body):
    """The body of `POST /v1/moderations`.

    A list of strings asks for a result each; a list of parts is one message and gets one result.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"input": "How do I kill a Python process?"},
                {"input": ["How do I kill a Python process?", "Good morning!"], "model": "omni-moderation-latest"},
                {"input": [{"type": "text", "text": "How do I kill a Python process?"}]},
            ]
        },
    )

    input: str | list[str] | list[TextPart]
    model: str | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _check_input(cls, value: Any) -> Any:
        # A union reports one error per member, none of which says what was wrong: find it before the union is tried.
        if isinstance(value, str):
            _check_text("input", value)
        elif isinstance(value, list):
            if not value:
                _refuse("empty_input", "'input' is an empty list.")
            if len(value) > MAX_INPUTS:
                _refuse("too_many_inputs", f"'input' has {len(value)} entries; a request may have {MAX_INPUTS}.")
            check = _check_part if any(isinstance(entry, dict) for entry in value) else _check_text
            for index, entry in enumerate(value):
                check(f"input[{index}]", entry)
        else:
            _refuse("invalid_type", "'input' must be a string, a list of strings or a list of typed parts.")
        return value

    def texts(self) -> list[str]:
        """Return the texts to classify, one per result of the answer."""
        if isinstance(self.input, str):
            return [self.input]
        texts = [entry for entry in self.input if isinstance(entry, str)]
        # Parts are read together: what is split over two of them may be harmless in each.
        return texts or ["\n".join(part.text for part in self.input if isinstance(part, TextPart))]


class ModerationResult(BaseModel):
    """What the guard says of one input; every mapping has all 13 keys of OpenAI's taxonomy."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[Literal["text"]]]


class ModerationResponse(BaseModel):
    """The answer to `POST /v1/moderations`."""

    id: str
    model: str
    results: list[ModerationResult]


class ErrorDetail(BaseModel):
    """What went wrong, as clients of OpenAI expect it; `param` names the field of the request, where there is one."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that is no success."""

    error: ErrorDetail


class RequestRefused(Exception):
    """The request cannot be answered; carries the body that says so."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.body = invalid_request(message, param=param, code=code)


def invalid_request(message: str, *, param: str | None = None, code: str | None = None) -> ErrorBody:
    """Return the body for a fault of the caller's."""
    return ErrorBody(error=ErrorDetail(message=message, type="invalid_request_error", param=param, code=code))


def server_error(message: str = "The server failed on this request.", *, code: str | None = None) -> ErrorBody:
    """Return the body for a fault of ours; the message must not be that of an exception, which may quote the text."""
    return ErrorBody(error=ErrorDetail(message=message, type="server_error", param=None, code=code))


def invalid_body(errors: Sequence[ErrorDetails | Mapping[str, Any]]) -> ErrorBody:
    """Return the body for what pydantic or FastAPI found wrong; of several errors the first is told.

    Args:
        errors: as `ValidationError.errors()` has them, at least one. Their `input`, the caller's text, is left out.
    """
    error = errors[0]
    kind = error["type"]
    # FastAPI puts "body" in front; the rest starts with the field, and goes on with union members and indices.
    where = [part for part in error["loc"] if part != "body"]
    param = str(where[0]) if where else None
    if kind == "json_invalid":
        return invalid_request("The body is not valid JSON.", code="invalid_json")
    if kind in _REFUSALS:
        return invalid_request(error["msg"], param=param, code=kind)
    if param is None:
        message = "The body must be a JSON object, sent as Content-Type: application/json."
        return invalid_request(message, code="invalid_body")
    if kind == "missing":
        return invalid_request(f"Missing required field: {param!r}.", param=param, code="missing_required_parameter")
    if kind == "extra_forbidden" and len(where) == 1:
        return invalid_request(f"Unknown field: {param!r}.", param=param, code="unknown_parameter")
    return invalid_request(f"{param!r}: {error['msg']}.", param=param, code="invalid_value")


def model_name(version: str) -> str:
    """Return the name under which a guard answers."""
    return f"{MODEL}-{version}"


def check_model(model: str | None, version: str) -> None:
    """Accept no model, OpenAI's names, "rayguard", and the name of the guard in use.

    Raises:
        RequestRefused: it is another.
    """
    known = model_name(version)
    if model is not None and model not in OPENAI_MODELS and model not in (MODEL, known):
        message = (
            f"The model {model!r} does not exist here. Known: {MODEL!r}, {known!r}, and OpenAI's moderation models."
        )
        raise RequestRefused(message, param="model", code="model_not_found")


def moderation_response(
    verdicts: Sequence[Verdict], flagged: Sequence[bool], thresholds: Mapping[str, float], version: str
) -> ModerationResponse:
    """Return the whole answer, one result for each verdict; see `moderation_result`."""
    return ModerationResponse(
        id=f"modr-{uuid4().hex}",
        model=model_name(version),
        results=[moderation_result(*each, thresholds) for each in zip(verdicts, flagged, strict=True)],
    )


def moderation_result(verdict: Verdict, flagged: bool, thresholds: Mapping[str, float]) -> ModerationResult:
    """Return a verdict in OpenAI's taxonomy.

    A key's score is the highest of our categories that map to it (`TO_OPENAI`). `flagged` can be true with no
    category on, as jailbreaks, misinformation and regulated advice have no key there. The reverse cannot happen: no
    category is on in a text that is not flagged, since clients read `flagged` as "any of the categories".

    Args:
        verdict: the guard's, with a probability for each of our categories.
        flagged: whether the policy flags or blocks it.
        thresholds: by label; a label not named takes that of "unsafe".
    """
    scores = {key: max(verdict.categories[ours] for ours in sources) for key, sources in _SOURCES.items()}
    on = {
        key: flagged and any(verdict.categories[ours] >= thresholds.get(ours, thresholds[UNSAFE]) for ours in sources)
        for key, sources in _SOURCES.items()
    }
    return ModerationResult(
        flagged=flagged,
        categories=on,
        category_scores=scores,
        category_applied_input_types={key: ["text"] for key in OPENAI_CATEGORIES},
    )


_REFUSALS = frozenset(
    {"empty_input", "too_many_inputs", "invalid_type", "invalid_unicode", "invalid_form", "image_not_supported"}
)


def _refuse(code: str, message: str) -> NoReturn:
    # Pydantic reads the message as a template, in which a brace would start a placeholder.
    raise PydanticCustomError(code, "{message}", {"message": message})


def _check_text(name: str, entry: Any) -> None:
    if not isinstance(entry, str):
        _refuse("invalid_type", f"'{name}' must be a string.")
    if not entry:
        _refuse("empty_input", f"'{name}' is empty.")
    _check_unicode(entry, f"'{name}'")


def _check_unicode(text: str, name: str = "A text") -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair, which no tokenizer can read
        _refuse("invalid_unicode", f"{name} holds half a surrogate pair, which is no text.")
    return text


def _check_part(name: str, entry: Any) -> None:
    kind = entry.get("type") if isinstance(entry, dict) else None
    if kind == "image_url":
        _refuse("image_not_supported", f"'{name}' is an image; this guard reads text only.")
    if kind != "text":
        _refuse("invalid_type", f"'{name}' must be a part {{'type': 'text', 'text': ...}}.")
    _check_text(f"{name}.text", entry.get("text"))


#: A string that is text.
Text = Annotated[str, Strict(), AfterValidator(_check_unicode)]

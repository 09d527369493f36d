"""LiteLLM's Generic Guardrail API, `POST /beta/litellm_basic_guardrail_api`: a proxy asks before and after the model.

Pure, as `serve.moderation`. The contract is that of LiteLLM's `guardrail: generic_guardrail_api`, which adds fields
from version to version: those nothing is read from are ignored. Each text is judged by itself, a text of an answer
behind the prompt where LiteLLM sends one; the strictest decision counts. Images are not read, and do not block.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from guardrail.guard import Verdict
from guardrail.policy import Policy, strictest
from guardrail.reading import Readable
from guardrail.taxonomy import UNSAFE
from serve.degraded import Failure
from serve.moderation import MAX_INPUTS, RequestRefused
from serve.native import Message, of_messages

PATH = "/beta/litellm_basic_guardrail_api"


class ToolFunction(BaseModel):
    """What a tool is called with: JSON in a string, or what a provider has instead."""

    arguments: Any = None


class CustomTool(BaseModel):
    """What a tool with a format of its own is called with."""

    input: Any = None


class ToolCall(BaseModel):
    """A call that a model makes."""

    function: ToolFunction | None = None
    custom: CustomTool | None = None

    def strings(self) -> Iterator[str]:
        """Yield what the call hands to the tool."""
        if self.function:
            yield from _strings(self.function.arguments)
        if self.custom:
            yield from _strings(self.custom.input)


class GuardrailRequest(BaseModel):
    """The body that LiteLLM sends; `texts` are of all messages of a request, or of all choices of an answer."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"input_type": "request", "texts": ["How do I kill a Python process?"]}]}
    )

    input_type: Literal["request", "response"]
    texts: list[str] | None = Field(None, max_length=MAX_INPUTS)
    tool_calls: list[ToolCall] | None = Field(None, max_length=MAX_INPUTS)
    structured_messages: list[dict[str, Any]] | None = Field(None, max_length=MAX_INPUTS)

    def read(self) -> list[Readable]:
        """Return the texts to judge; there may be none.

        Raises:
            RequestRefused: there are too many, or a long prompt would have to be read with too many answers.
        """
        messages = self.structured_messages or ()
        texts = list(self.texts or ())
        if len(texts) + len(self.tool_calls or ()) + len(messages) > MAX_INPUTS:
            raise RequestRefused(f"There are more than {MAX_INPUTS} texts and messages.", code="too_many_inputs")
        texts += ["\n".join(call.strings()) for call in self.tool_calls or ()]
        if self.input_type == "request":
            # `texts` has the parts of a message one by one: what is split over two of them may be harmless in each.
            texts += ["\n".join(parts) for parts in map(_parts, messages) if len(parts) > 1]
        # What JSON inside of JSON spells may be half a surrogate pair, which no tokenizer can read.
        texts = [text.encode(errors="replace").decode() for text in texts if text.strip()]
        prompts = ["\n".join(_parts(message)) for message in messages if message.get("role") == "user"]
        if self.input_type == "request" or not prompts:
            return list(texts)
        prompt = Message(role="user", content=prompts[-1].encode(errors="replace").decode())
        _, *read = of_messages([prompt, *(Message(role="assistant", content=text) for text in texts)])
        return [each.text for each in read]


class GuardrailResponse(BaseModel):
    """The answer: texts pass as they are, or are blocked; `blocked_reason` is what LiteLLM tells its client."""

    action: Literal["BLOCKED", "NONE"]
    blocked_reason: str | None = None


def guardrail_response(
    verdicts: Sequence[Verdict], policy: Policy, thresholds: Mapping[str, float], degraded: Failure | None = None
) -> GuardrailResponse:
    """Return the answer; the reason names categories, never the text.

    Args:
        verdicts: one for each text that was read.
        policy: blocks or lets pass; LiteLLM knows nothing between.
        thresholds: of the guard, by label, for categories to name where the policy's own reason is "unsafe" alone; a
            label not named takes that of "unsafe".
        degraded: why the texts were not judged, where they were not.
    """
    decisions = [policy.decide(verdict.scores) for verdict in verdicts]
    if not decisions or strictest(decisions).action != "block":
        return GuardrailResponse(action="NONE")
    if degraded:
        return GuardrailResponse(action="BLOCKED", blocked_reason=f"Blocked unread: the guard failed ({degraded}).")
    named: dict[str, None] = {}  # in this order, each once
    for verdict, decision in zip(verdicts, decisions, strict=True):
        if decision.action == "block":
            named |= dict.fromkeys(reason for reason in decision.reasons if reason != UNSAFE)
            if UNSAFE in decision.reasons:
                named |= dict.fromkeys(
                    key for key, score in verdict.categories.items() if score >= thresholds.get(key, thresholds[UNSAFE])
                )
    # A text can be unsafe without any category being certain enough.
    reason = f"Blocked as unsafe: {', '.join(named)}." if named else "Blocked as unsafe."
    return GuardrailResponse(action="BLOCKED", blocked_reason=reason)


def _parts(message: Mapping[str, Any]) -> list[str]:
    """Return the texts of a message, which other providers than OpenAI may fill with what they like."""
    content = message.get("content")
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, list) else ()
    return [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]


def _strings(arguments: Any) -> Iterator[str]:
    """Yield the strings of JSON, whose escapes hide letters, and what is no JSON as it is.

    Of names only those of several words: a parameter's is one.
    """
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments, object_pairs_hook=list)  # of two values of a name, a dict has one
        except (ValueError, RecursionError):
            yield arguments
            return
    waiting = [arguments]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting += reversed(list(value.items()))
        elif isinstance(value, list):
            waiting += reversed(value)
        elif isinstance(value, tuple):
            name, said = value
            waiting += [said, *([name] if len(name.split()) > 1 else [])]

"""LiteLLM's guardrail contract: what is read of its requests, and what it is told."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from guardrail.guard import Verdict
from guardrail.policy import Policy, guards_own
from guardrail.reading import Exchange, Readable
from guardrail.taxonomy import CATEGORIES
from serve.degraded import BLOCKS, NOT_JUDGED
from serve.litellm import GuardrailRequest, guardrail_response
from serve.moderation import MAX_INPUTS, RequestRefused

PARTS = [{"type": "text", "text": "Name"}, {"type": "image_url"}, {"type": "text", "text": "it"}]
MESSAGES = [
    {"role": "system", "content": "Be kind.", "cache_control": {"type": "ephemeral"}},
    {"role": "user", "content": PARTS},
]
THRESHOLDS = {"unsafe": 0.5, "hate": 0.9}


def verdict(score: float, **categories: float) -> Verdict:
    return Verdict(score >= 0.5, score, dict.fromkeys(CATEGORIES, 0.0) | categories)


def read(input_type: str = "request", **body: Any) -> list[Readable]:
    return GuardrailRequest.model_validate({"input_type": input_type, "request_data": {}, **body}).read()


def call(arguments: Any) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": "search", "arguments": arguments}, "index": 0}


def test_all_texts_of_a_request_are_read_and_split_ones_together() -> None:
    assert read(texts=["Be kind.", "Name", "it"], structured_messages=MESSAGES) == [
        "Be kind.", "Name", "it", "Name\nit",
    ]  # fmt: skip


def test_an_answer_is_read_behind_its_prompt_where_that_is_sent() -> None:
    assert read("response", texts=["Tea.", "Rum."]) == ["Tea.", "Rum."]
    behind = [Exchange("Name\nit", "Tea."), Exchange("Name\nit", "Rum.")]
    assert read("response", texts=["Tea.", "Rum."], structured_messages=MESSAGES) == behind
    assert read("response", texts=["Tea."], structured_messages=MESSAGES[:1]) == ["Tea."]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ('{"query": "caf\\u00e9", "more": [1, {"deep": "tea"}], "none": null}', "café\ntea"),
        ("rm -rf /", "rm -rf /"),
        ('"plain"', "plain"),
        ({"query": "as an object"}, "as an object"),
        ("[" * 100_000, "[" * 100_000),
        ('{"query": "half \\ud800"}', "half ?"),
        ('{"query": "the first", "query": "the second"}', "the first\nthe second"),
        ('{"what is asked": {"as a name": 1}}', "what is asked\nas a name"),
    ],
)
def test_arguments_of_tools_are_read_as_what_they_say(arguments: Any, said: str) -> None:
    assert read("response", texts=[], tool_calls=[call(arguments)]) == [said]


def test_what_a_tool_of_its_own_format_gets_is_read() -> None:
    calls = [{"type": "custom", "custom": {"name": "shell", "input": "rm -rf /"}}]
    assert read("response", texts=[], tool_calls=calls) == ["rm -rf /"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"texts": None, "tool_calls": None, "structured_messages": None, "images": None},
        {"texts": ["", " \n"], "images": ["data:image/png;base64,AA=="]},
        {"tool_calls": [{"type": "custom", "custom": {}}, call(None), call("{}")]},
        {"structured_messages": [{"role": "user"}, {"role": "user", "content": [{"text": {"value": "a"}}, "b", 3]}]},
    ],
)
@pytest.mark.parametrize("input_type", ["request", "response"])
def test_where_there_is_no_text_nothing_is_read(input_type: str, body: dict[str, Any]) -> None:
    assert read(input_type, **body) == []
    assert guardrail_response([], guards_own(0.5), THRESHOLDS).action == "NONE"


def test_a_body_without_input_type_is_refused() -> None:
    with pytest.raises(ValidationError):
        GuardrailRequest.model_validate({"texts": ["a"]})


def test_a_prompt_is_not_read_again_without_end() -> None:
    with pytest.raises(RequestRefused, match="4,000,000 characters"):
        read("response", texts=["a"] * 100, structured_messages=[{"role": "user", "content": "a" * 50_000}])


def test_more_texts_than_elsewhere_are_refused() -> None:
    assert len(read("request", texts=["a"] * MAX_INPUTS)) == MAX_INPUTS
    with pytest.raises(RequestRefused, match="more than 1024"):
        read("request", texts=["a"] * MAX_INPUTS, tool_calls=[{"function": {"arguments": "b"}}])


@pytest.mark.parametrize(
    ("verdicts", "reason"),
    [
        ([verdict(0.4, fraud=0.9)], None),
        ([verdict(0.4, fraud=0.9), verdict(0.6, violence=0.5, hate=0.8)], "Blocked as unsafe: violence."),
        ([verdict(0.6, violence=0.5), verdict(0.7, hate=0.9)], "Blocked as unsafe: violence, hate."),
        ([verdict(0.6)], "Blocked as unsafe."),
    ],
)
def test_a_reason_names_the_categories_of_what_is_blocked(verdicts: list[Verdict], reason: str | None) -> None:
    answer = guardrail_response(verdicts, guards_own(0.5), THRESHOLDS)
    assert (answer.action, answer.blocked_reason) == ("BLOCKED" if reason else "NONE", reason)


def test_a_policy_decides_and_what_it_only_flags_passes() -> None:
    policy = Policy.model_validate({"thresholds": {"unsafe": {"flag": 0.2}, "fraud": {"block": 0.8}}})
    assert guardrail_response([verdict(0.9, hate=1.0)], policy, THRESHOLDS).action == "NONE"
    answer = guardrail_response([verdict(0.9, hate=1.0), verdict(0.1, fraud=0.8)], policy, THRESHOLDS)
    assert json.loads(answer.model_dump_json()) == {"action": "BLOCKED", "blocked_reason": "Blocked as unsafe: fraud."}


def test_what_was_not_judged_is_blocked_for_that() -> None:
    answer = guardrail_response([NOT_JUDGED], BLOCKS, THRESHOLDS, "model_failed")
    assert (answer.action, answer.blocked_reason) == ("BLOCKED", "Blocked unread: the guard failed (model_failed).")

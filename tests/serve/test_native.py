"""The native contract: what is read of a request, what is refused, and how verdicts become an answer."""

from typing import Any

import pytest
from pydantic import ValidationError

from guardrail.guard import Span, Verdict
from guardrail.guard_card import GuardCard
from guardrail.policy import GUARDS_OWN, Policy, guards_own
from guardrail.reading import Exchange, Readable, messages_read
from guardrail.taxonomy import CATEGORIES
from serve.moderation import RequestRefused, invalid_body
from serve.native import GuardRequest, guard_response

CARD = GuardCard(version="v1", digest="d", temperature=1.0, thresholds={"unsafe": 0.5}, window=8)
CONVERSATION = [
    {"role": "system", "content": "Be kind."},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Name a tea."},
    {"role": "tool", "content": "[]"},
    {"role": "assistant", "content": "Oolong."},
]


def verdict(score: float, *spans: Span, said: str | None = None, **categories: float) -> Verdict:
    categories = dict.fromkeys(CATEGORIES, 0.0) | categories
    return Verdict(score >= 0.5, score, categories, spans, said, judged=spans)


def span(start: int, end: int, score: float, disguised: bool = False, **categories: float) -> Span:
    return Span(start, end, score, disguised, categories=dict.fromkeys(CATEGORIES, 0.0) | categories)


def read(**body: Any) -> list[tuple[str, Readable]]:
    return [tuple(each) for each in GuardRequest.model_validate(body).read()]


def test_prompt_and_response_are_read_together_and_the_prompt_alone() -> None:
    assert read(prompt="a") == [("prompt", "a")]
    assert read(prompt="a", response="") == [("prompt", "a"), ("response", Exchange("a", ""))]


def test_an_answer_of_a_conversation_is_read_behind_what_was_asked_last() -> None:
    assert read(messages=CONVERSATION) == [
        ("messages[0]", "Be kind."),
        ("messages[1]", "Hello."),
        ("messages[2]", "Name a tea."),
        ("messages[3]", "[]"),
        ("messages[4]", Exchange("Name a tea.", "Oolong.")),
    ]
    assert [text for _, text in read(messages=CONVERSATION)] == messages_read(CONVERSATION)  # as the Python API does


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, None, "invalid_form"),
        ({"response": "a"}, None, "invalid_form"),
        ({"prompt": "a", "messages": CONVERSATION}, None, "invalid_form"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "pope", "content": "a"}]}, "messages", "invalid_value"),
        ({"prompt": 3}, "prompt", "invalid_value"),
        ({"prompt": "\ud800"}, "prompt", "invalid_unicode"),
        ({"prompt": "a", "input": "b"}, "input", "unknown_parameter"),
    ],
)
def test_other_bodies_are_refused_with_what_is_wrong(body: dict[str, Any], param: str | None, code: str) -> None:
    with pytest.raises(ValidationError) as refused:
        GuardRequest.model_validate(body)
    error = invalid_body(refused.value.errors()).error
    assert (error.param, error.code) == (param, code)
    assert "\ud800" not in error.message


def test_a_prompt_is_not_read_again_without_end() -> None:
    answers = [{"role": "assistant", "content": "a"}] * 100
    with pytest.raises(RequestRefused, match="4,000,000 characters"):
        read(messages=[{"role": "user", "content": "a" * 50_000}, *answers])


def test_the_most_unsafe_part_decides_and_spans_are_of_their_part() -> None:
    parts = GuardRequest.model_validate({"prompt": "abcd", "response": "efgh"}).read()
    verdicts = [
        verdict(0.2, hate=0.3),
        verdict(0.9, span(0, 2, 0.9), span(1, 2, 0.7, disguised=True), span(2, 4, 0.4), said="x", violence=0.8),
    ]
    answer = guard_response(parts, verdicts, CARD, GUARDS_OWN, guards_own(0.5))
    assert (answer.unsafe, answer.action, answer.score, answer.model) == (True, "block", 0.9, "rayguard-v1")
    assert (answer.categories["hate"], answer.categories["violence"]) == (0.3, 0.8)
    assert [(p.part, p.unsafe, p.said) for p in answer.parts] == [("prompt", False, None), ("response", True, "x")]
    assert [(s.start, s.end, s.disguised) for s in answer.parts[1].spans] == [(0, 2, False), (1, 2, True)]
    assert guard_response(parts[:1], verdicts[:1], CARD, GUARDS_OWN, guards_own(0.5)).action == "allow"


def test_a_policy_chooses_the_action_and_says_for_what() -> None:
    policy = Policy.model_validate({"thresholds": {"unsafe": {"flag": 0.6}, "violence": {"block": 0.3}}})
    parts = GuardRequest(prompt="a", response="b").read()
    flagged = guard_response(parts, [verdict(0.7), verdict(0.1, violence=0.2)], CARD, "mild", policy)
    assert (flagged.policy, flagged.action, flagged.reasons, flagged.unsafe) == ("mild", "flag", ["unsafe"], True)
    blocked = guard_response(parts, [verdict(0.7), verdict(0.1, violence=0.3)], CARD, "mild", policy)
    assert (blocked.action, blocked.reasons) == ("block", ["violence"])


def test_spans_are_what_the_policy_and_not_the_guard_would_not_allow() -> None:
    policy = Policy.model_validate({"thresholds": {"unsafe": {"flag": 0.4}, "violence": {"block": 0.1}}})
    spans = span(0, 2, 0.3), span(2, 4, 0.45), span(4, 6, 0.2, violence=0.15)
    parts = GuardRequest(prompt="abcdef").read()
    answer = guard_response(parts, [verdict(0.45, *spans, violence=0.15)], CARD, "strict", policy)
    assert (answer.action, answer.unsafe) == ("block", False)
    assert [(each.start, each.end) for each in answer.parts[0].spans] == [(2, 4), (4, 6)]

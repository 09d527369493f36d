"""The moderation contract: requests, answers and errors, without a server."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import ModerationCreateResponse
from pydantic import ValidationError

from guardrail.guard import Verdict
from guardrail.taxonomy import CATEGORIES, OPENAI_CATEGORIES, TO_OPENAI, UNSAFE
from serve.admission import work_units
from serve.moderation import (
    MAX_INPUTS,
    OPENAI_MODELS,
    ErrorDetail,
    ModerationRequest,
    RequestRefused,
    check_model,
    invalid_body,
    moderation_response,
    moderation_result,
)

THRESHOLDS = {UNSAFE: 0.5}
PROBABILITIES = st.floats(0, 1)
VERDICTS = st.builds(
    Verdict,
    unsafe=st.booleans(),
    score=PROBABILITIES,
    categories=st.fixed_dictionaries(dict.fromkeys(CATEGORIES, PROBABILITIES)),
)


def verdict(*, unsafe: bool = True, **categories: float) -> Verdict:
    return Verdict(unsafe=unsafe, score=0.9 if unsafe else 0.1, categories=dict.fromkeys(CATEGORIES, 0.0) | categories)


def error_of(body: Any) -> ErrorDetail:
    """Return the error that a request of this body, parsed from JSON, is answered with."""
    with pytest.raises(ValidationError) as caught:
        ModerationRequest.model_validate(body)
    return invalid_body(caught.value.errors()).error


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ("one", ["one"]),
        (["one", "two"], ["one", "two"]),
        ([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}], ["one\ntwo"]),
        ([{"type": "text", "text": "{braces}"}], ["{braces}"]),
    ],
)
def test_texts_of_each_form_of_input(given: Any, texts: list[str]) -> None:
    assert ModerationRequest(input=given).texts() == texts


@pytest.mark.parametrize(
    ("body", "param", "code", "message"),
    [
        ({}, "input", "missing_required_parameter", "'input'"),
        ([], None, "invalid_body", "JSON object"),
        ({"input": ""}, "input", "empty_input", "'input' is empty"),
        ({"input": []}, "input", "empty_input", "empty list"),
        ({"input": ["a", ""]}, "input", "empty_input", "input[1]"),
        ({"input": ["a", 3]}, "input", "invalid_type", "'input[1]' must be a string"),
        ({"input": None}, "input", "invalid_type", "must be a string, a list"),
        ({"input": {"text": "a"}}, "input", "invalid_type", "must be a string, a list"),
        ({"input": ["a"] * (MAX_INPUTS + 1)}, "input", "too_many_inputs", str(MAX_INPUTS)),
        ({"input": "\ud800"}, "input", "invalid_unicode", "surrogate"),
        ({"input": ["a", "\udc00"]}, "input", "invalid_unicode", "input[1]"),
        ({"input": [{"type": "image_url", "image_url": {"url": "x"}}]}, "input", "image_not_supported", "image"),
        ({"input": [{"type": "text", "text": "a"}, "b"]}, "input", "invalid_type", "input[1]"),
        ({"input": [{"type": "text"}]}, "input", "invalid_type", "'input[0].text' must be a string"),
        ({"input": [{"type": "text", "text": ""}]}, "input", "empty_input", "input[0]"),
        ({"input": [{"type": ["text"], "text": "a"}]}, "input", "invalid_type", "input[0]"),
        ({"input": "a", "model": 3}, "model", "invalid_value", "model"),
        ({"input": "a", "modle": "x"}, "modle", "unknown_parameter", "modle"),
        ({"input": "a", "\ud800": "x"}, None, "invalid_body", "JSON object"),
    ],
)
def test_wrong_bodies_are_explained(body: Any, param: str | None, code: str, message: str) -> None:
    error = error_of(body)
    assert (error.type, error.param, error.code) == ("invalid_request_error", param, code)
    assert message in error.message


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=20))
def test_any_input_is_read_or_refused_with_a_body_that_can_be_sent(value: Any) -> None:
    try:
        texts = ModerationRequest.model_validate(
            {"input": value, "\ud800": 1} if value is None else {"input": value}
        ).texts()
    except ValidationError as error:
        json.dumps(invalid_body(error.errors()).model_dump(), ensure_ascii=False).encode()
    else:
        assert texts and all(texts)


def test_models_of_openai_and_our_own_are_known() -> None:
    for model in (None, "rayguard", "rayguard-round-03", *OPENAI_MODELS):
        check_model(model, "round-03")


def test_unknown_model_is_refused_and_names_the_known() -> None:
    with pytest.raises(RequestRefused, match="rayguard-round-03") as caught:
        check_model("gpt-4", "round-03")
    assert (caught.value.body.error.param, caught.value.body.error.code) == ("model", "model_not_found")


@given(VERDICTS)
def test_results_have_all_keys_and_scores_that_are_probabilities(given: Verdict) -> None:
    result = moderation_result(given, given.unsafe, THRESHOLDS)
    for mapping in (result.categories, result.category_scores, result.category_applied_input_types):
        assert tuple(mapping) == OPENAI_CATEGORIES
    assert all(0 <= score <= 1 for score in result.category_scores.values())
    assert result.flagged == given.unsafe
    assert result.flagged or not any(result.categories.values())
    for ours, theirs in TO_OPENAI.items():
        assert result.category_scores[theirs] >= given.categories[ours]


@given(st.lists(VERDICTS, min_size=1, max_size=3))
def test_answers_are_what_the_openai_client_reads(verdicts: list[Verdict]) -> None:
    answer = moderation_response(verdicts, [each.unsafe for each in verdicts], THRESHOLDS, "round-03").model_dump()
    read = ModerationCreateResponse.model_validate(answer, strict=True)
    assert read.id.startswith("modr-") and read.model == "rayguard-round-03"
    assert [result.flagged for result in read.results] == [given.unsafe for given in verdicts]
    assert json.loads(json.dumps(answer)) == read.model_dump(by_alias=True)


def test_a_category_that_openai_lacks_answers_under_the_nearest_key() -> None:
    result = moderation_result(verdict(fraud=0.8, illicit=0.3), True, THRESHOLDS)
    assert result.category_scores["illicit"] == 0.8
    assert [key for key, on in result.categories.items() if on] == ["illicit"]


def test_a_jailbreak_is_flagged_though_openai_has_no_key_for_it() -> None:
    result = moderation_result(verdict(jailbreak=0.9), True, THRESHOLDS)
    assert result.flagged and not any(result.categories.values())


def test_a_category_has_its_own_threshold_where_the_guard_names_one() -> None:
    thresholds = {UNSAFE: 0.5, "fraud": 0.9, "hate": 0.2}
    result = moderation_result(verdict(fraud=0.8, hate=0.3), True, thresholds)
    assert [key for key, on in result.categories.items() if on] == ["hate"]
    # It decides nothing: what is not flagged has no category on.
    result = moderation_result(verdict(unsafe=False, hate=0.3), False, thresholds)
    assert not result.flagged and not any(result.categories.values())


def test_work_is_counted_by_length_and_by_number() -> None:
    assert work_units(["a", "b", "c"]) == work_units(["a" * 1500]) == 3
    assert work_units(["a"] * MAX_INPUTS) == MAX_INPUTS

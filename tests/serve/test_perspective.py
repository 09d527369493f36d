"""Perspective's contract: what is scored of a comment, under which names, and errors in Google's shape."""

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from guardrail.guard import Verdict
from guardrail.taxonomy import CATEGORIES
from serve import keys
from serve.admission import Overloaded
from serve.errors import answer_errors
from serve.keys import Keys
from serve.middleware import MAX_BODY_BYTES, require_keys
from serve.moderation import MAX_INPUTS
from serve.perspective import ATTRIBUTES, PATH, AnalyzeRequest, analyze_response

LOW = dict.fromkeys(CATEGORIES, 0.0)


def verdict(**categories: float) -> Verdict:
    return Verdict(False, 0.1, LOW | categories)


def body(text: str = "Hi there", attributes: Any = None, **more: Any) -> dict[str, Any]:
    return {"comment": {"text": text}, "requestedAttributes": attributes or {"TOXICITY": {}}, **more}


def analyzed(request: dict[str, Any], *verdicts: Verdict) -> Any:
    answer = analyze_response(AnalyzeRequest.model_validate(request), verdicts)
    return answer.model_dump(by_alias=True, exclude_none=True)


def values(**categories: float) -> dict[str, float]:
    categories = {key.replace("_", "/"): score for key, score in categories.items()}
    scores = analyzed(body(attributes={name: {} for name in ATTRIBUTES}), verdict(**categories))["attributeScores"]
    return {name: score["summaryScore"]["value"] for name, score in scores.items() if score["summaryScore"]["value"]}


def score(value: float) -> dict[str, Any]:
    return {"value": value, "type": "PROBABILITY"}


def test_an_attribute_is_the_highest_of_the_categories_that_mean_it() -> None:
    assert {key for ours in ATTRIBUTES.values() for key in ours} <= set(CATEGORIES)
    assert values(harassment=0.5) == {"TOXICITY": 0.5, "INSULT": 0.5}
    assert values(hate=0.3, hate_threatening=0.6) == {
        "TOXICITY": 0.6, "SEVERE_TOXICITY": 0.6, "IDENTITY_ATTACK": 0.6, "THREAT": 0.6,
    }  # fmt: skip
    assert values(sexual=0.7, violence=0.9, fraud=1.0) == {"SEXUALLY_EXPLICIT": 0.7}


def test_the_answer_as_perspective_gives_it() -> None:
    request = body(
        languages=["en"], clientToken="t", doNotStore=True, sessionId="s", communityId="c", context={"entries": []}
    )
    assert analyzed(request, verdict(hate=0.25)) == {
        "attributeScores": {
            "TOXICITY": {"spanScores": [{"begin": 0, "end": 8, "score": score(0.25)}], "summaryScore": score(0.25)}
        },
        "languages": ["en"],
        "clientToken": "t",
    }
    snake_case = {"comment": {"text": "a"}, "requested_attributes": {"INSULT": {"score_type": "PROBABILITY"}}}
    assert set(analyzed(snake_case, verdict())) == {"attributeScores"}


def test_scores_under_the_threshold_are_left_out() -> None:
    attributes = {"TOXICITY": {"scoreThreshold": 0.4}, "INSULT": {"scoreThreshold": 0.5}, "THREAT": {}}
    scores = analyzed(body(attributes=attributes), verdict(harassment=0.4))["attributeScores"]
    assert set(scores) == {"TOXICITY", "THREAT"}
    assert analyzed(body(attributes={"INSULT": {"scoreThreshold": 0.5}}), verdict()) == {}


def test_sentences_are_scored_where_spans_are_wanted_and_counted_in_utf_16() -> None:
    text = "😀 Hi. What?! \n行け。x"
    request = body(text, {"TOXICITY": {"scoreThreshold": 0.1}}, spanAnnotations=True)
    spans = AnalyzeRequest.model_validate(request).spans()
    assert [text[slice(*span)] for span in spans] == [text, "😀 Hi.", "What?!", "行け。", "x"]
    scores = analyzed(request, verdict(hate=0.9), *(verdict(hate=each) for each in (0.1, 0.0, 0.2, 0.9)))
    toxicity = scores["attributeScores"]["TOXICITY"]
    assert toxicity["summaryScore"] == score(0.9)
    assert [(span["begin"], span["end"], span["score"]["value"]) for span in toxicity["spanScores"]] == [
        (0, 6, 0.1), (15, 18, 0.2), (18, 19, 0.9),
    ]  # fmt: skip
    assert AnalyzeRequest.model_validate(body("One.", spanAnnotations=True)).spans() == [(0, 4)]


@pytest.fixture
def client() -> TestClient:
    """A client of the route in front of a guard that finds nothing."""
    api = FastAPI()
    answer_errors(api)

    @api.post(PATH)
    def analyze(request: AnalyzeRequest) -> Any:
        request.attributes()
        if request.comment.text == "crash":
            raise ValueError
        if request.comment.text == "overload":
            raise Overloaded(7)
        return analyze_response(request, [verdict() for _ in request.spans()])

    return TestClient(api)


@pytest.mark.parametrize(
    ("request_body", "error_type", "message"),
    [
        (body(""), "COMMENT_EMPTY", "Comment must be non-empty."),
        ({"requestedAttributes": {"TOXICITY": {}}}, "COMMENT_EMPTY", "Comment must be non-empty."),
        ({"comment": {"text": "a"}}, "NO_REQUESTED_ATTRIBUTES", "Missing requested_attributes"),
        (body(attributes={"TOXICITY": {}, "SPAM": {}}), "INVALID_REQUEST", "attribute: 'SPAM'. Served here: TOXICITY,"),
        (body(attributes={"TOXICITY@6": {}}), "INVALID_REQUEST", "Unknown requested attribute"),
        (body(attributes={"TOXICITY": {"scoreType": "RAW"}}), "INVALID_REQUEST", "'PROBABILITY'"),
        (body(attributes={"TOXICITY": {"scoreThreshold": "nan"}}), "INVALID_REQUEST", "finite"),
        ({**body(), "comment": {"text": "a", "type": "HTML"}}, "INVALID_REQUEST", "'PLAIN_TEXT'"),
        (body(text="\ud800"), "INVALID_REQUEST", "surrogate"),
        (body(unknown=1), "INVALID_REQUEST", "Unknown field: 'unknown'"),
        (body("a." * (MAX_INPUTS + 1), spanAnnotations=True), "INVALID_REQUEST", "sentences"),
    ],
)
def test_other_bodies_are_refused_in_googles_shape(
    client: TestClient, request_body: dict[str, Any], error_type: str, message: str
) -> None:
    answer = client.post(PATH, content=json.dumps(request_body), headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["status"]) == (400, 400, "INVALID_ARGUMENT")
    assert error["details"] == [
        {"@type": "type.googleapis.com/google.commentanalyzer.v1alpha1.Error", "errorType": error_type}
    ]
    assert message in error["message"]


def test_attributes_that_are_not_served_are_dropped_where_that_is_wanted(client: TestClient) -> None:
    request = body(attributes={"TOXICITY": {}, "FLIRTATION": {}}, dropUnsupportedAttributes=True)
    assert set(client.post(PATH, json=request).json()["attributeScores"]) == {"TOXICITY"}


@pytest.mark.parametrize(
    ("text", "status", "name"),
    [
        ("crash", 500, "INTERNAL"),
        ("overload", 429, "RESOURCE_EXHAUSTED"),
        ("x" * MAX_BODY_BYTES, 413, "INVALID_ARGUMENT"),
    ],
)
def test_errors_of_the_service_have_googles_shape_too(client: TestClient, text: str, status: int, name: str) -> None:
    answer = client.post(PATH, json=body(text))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["status"]) == (status, status, name)
    assert answer.headers.get("retry-after") == ("7" if status == 429 else None)


def test_the_key_may_stand_in_the_url_of_this_route_alone(
    client: TestClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keys.main(["--file", str(tmp_path / "keys"), "add", "tests"]) == 0
    key = capsys.readouterr().out.strip()
    require_keys(Keys(tmp_path / "keys"))
    try:
        assert client.post(f"{PATH}?alt=json&key={key}", json=body()).is_success
        assert client.post(PATH, json=body(), headers={"Authorization": f"Bearer {key}"}).is_success
        for url in (PATH, f"{PATH}?key=", f"{PATH}?key=wrong"):
            assert client.post(url, json=body()).json()["error"]["status"] == "UNAUTHENTICATED"
        assert client.post(PATH, json=body(), headers={"x-api-key": key}).status_code == 401
        assert client.post(f"/v1/moderations?key={key}", json={}).status_code == 401
    finally:
        require_keys(None)

"""No body, however broken, is answered with a 5xx or with an error in no shape that clients know."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.fuzzed_bodies import Fuzzed, fuzzed_requests
from tests.served_guard import served
from tests.tiny_guard import tiny_guard

EXAMPLES = 150
_OF_OPENAI = {"message", "type", "param", "code"}
_OF_OTHERS = {
    "/v1alpha1/comments:analyze": {"code", "message", "status"}
}  # Google's, as clients of Perspective read it


@pytest.fixture(scope="module")
def client(ray_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    guard = tiny_guard(tmp_path_factory.mktemp("guard") / "0")
    with served(guard) as address, httpx.Client(base_url=address, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def requests(client: httpx.Client) -> SearchStrategy[Fuzzed]:
    return fuzzed_requests(client.get("/openapi.json").raise_for_status().json())


# The same examples in every run: what is found once is found by all. The benchmark serve_resilience draws new ones.
@settings(max_examples=EXAMPLES, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_body_is_too_much(client: httpx.Client, requests: SearchStrategy[Fuzzed], data: st.DataObject) -> None:
    path, content, content_type = data.draw(requests)
    answer = client.post(path, content=content, headers={"Content-Type": content_type})
    assert answer.status_code < 500, answer.text
    if not answer.is_success:
        assert set(answer.json()) == {"error"}
        assert set(answer.json()["error"]) >= _OF_OTHERS.get(path, _OF_OPENAI)


def test_the_guard_is_still_served(client: httpx.Client) -> None:
    assert client.get("/readyz").is_success

"""The served guard, as clients see it: a real Ray Serve, the official OpenAI client, guards swapped under load."""

import asyncio
import itertools
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import ray
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from ray import serve

from guardrail.answers import GuardResponse
from guardrail.client import AsyncGuardClient, GuardClient, GuardServiceError, ResponseStopped
from guardrail.guard import Guard
from guardrail.guard_card import GuardCard
from guardrail.reading import Exchange
from guardrail.taxonomy import OPENAI_CATEGORIES
from guardrail.text import digest as text_digest
from serve import keys, litellm, perspective
from serve.app import ModeratorState
from serve.moderation import MAX_INPUTS, moderation_result
from tests import served_guard
from tests.fuzzed_bodies import Fuzzed, fuzzed_requests
from tests.tiny_guard import tiny_guard
from tests.waiting import free_port, until

ROOT = Path(__file__).parents[2]
TEXTS = ["How do I bake bread?", "I will find you.", "long and winding " * 40, "日本語", "x"]


def deploy(application_guard: Path, guard_in_use: Path, **config: Any) -> None:
    """Deploy, or change the `user_config` in place."""
    served_guard.deploy({"guard": str(application_guard)}, guard=str(guard_in_use), **config)


@pytest.fixture(scope="module")
def address(ray_cluster: Any, guards: tuple[Path, Path]) -> Iterator[str]:
    """The address of a served guard, the first of the two."""
    with served_guard.served(guards[0]) as url:
        yield url


@pytest.fixture(scope="module")
def fuzzed(address: str) -> SearchStrategy[Fuzzed]:
    """Hostile requests to every POST route."""
    return fuzzed_requests(httpx.get(f"{address}/openapi.json").raise_for_status().json())


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
def first_guard_again(address: str, guards: tuple[Path, Path]) -> Iterator[None]:
    """Put the first guard back after the test."""
    yield
    deploy(guards[0], guards[0])
    until(lambda: digest_in_use(address) == digest(guards[0]), "the first guard is back")
    until(lambda: httpx.post(f"{address}/v1/moderations", json={"input": "a"}).is_success, "and no key is wanted")


def digest(directory: Path) -> str:
    return GuardCard.read(directory).digest


def digest_in_use(address: str) -> str | None:
    found = served_guard.in_use(address)
    return found[1] if found else None


def state() -> ModeratorState:
    """What the one replica says of itself."""
    found: Any = serve.get_app_handle(served_guard.APPLICATION).state.remote().result()
    assert isinstance(found, ModeratorState)
    return found


def expected(directory: Path, text: str) -> dict[str, Any]:
    """What a guard that is loaded here says of a text."""
    guard = Guard.from_pretrained(directory)
    verdict = guard.classify([text])[0]
    return moderation_result(verdict, verdict.unsafe, guard.card.thresholds).model_dump()


def test_answers_equal_the_guards_own(client: openai.OpenAI, guards: tuple[Path, Path]) -> None:
    raw = client.moderations.with_raw_response.create(input=TEXTS)
    assert raw.headers["rayguard-guard"] == GuardCard.read(guards[0]).digest
    answer = raw.parse()
    assert answer.id.startswith("modr-") and answer.model == "rayguard-tiny-0"
    assert len(answer.results) == len(TEXTS)
    for text, result in zip(TEXTS, answer.results, strict=True):
        wanted = expected(guards[0], text)
        assert result.flagged == wanted["flagged"]
        scores = result.category_scores.model_dump(by_alias=True)
        assert set(scores) == set(OPENAI_CATEGORIES)
        assert scores == pytest.approx(wanted["category_scores"], abs=1e-5)
        assert result.categories.model_dump(by_alias=True) == wanted["categories"]
        assert result.category_applied_input_types.harassment_threatening == ["text"]


def test_each_form_of_input_and_raw_answers(client: openai.OpenAI) -> None:
    assert len(client.moderations.create(input="one", model="omni-moderation-latest").results) == 1
    parts: Any = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert len(client.moderations.create(input=parts).results) == 1
    raw = client.moderations.with_raw_response.create(input=["one", "two"])
    assert raw.status_code == 200 and len(raw.parse().results) == 2
    assert len(client.moderations.create(input=["many"] * MAX_INPUTS).results) == MAX_INPUTS


def test_concurrent_requests_each_get_their_own_answer(address: str, guards: tuple[Path, Path]) -> None:
    async def ask() -> list[float]:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0) as client:
            answers = await asyncio.gather(*(client.moderations.create(input=text) for text in texts))
        return [answer.results[0].category_scores.violence for answer in answers]

    texts = [f"{'a' * (index * 7)} {index}" for index in range(64)]
    guard = Guard.from_pretrained(guards[0])
    wanted = [verdict.categories["violence"] for verdict in guard.classify(texts)]
    assert asyncio.run(ask()) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    ("input", "model", "param", "code"),
    [
        ("", None, "input", "empty_input"),
        ([], None, "input", "empty_input"),
        (["a"] * (MAX_INPUTS + 1), None, "input", "too_many_inputs"),
        (
            [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}],
            None,
            "input",
            "image_not_supported",
        ),
        ("a", "gpt-4", "model", "model_not_found"),
    ],
)
def test_refusals_as_the_client_sees_them(
    client: openai.OpenAI, input: Any, model: str | None, param: str, code: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.moderations.create(input=input, model=model or openai.omit)
    assert (caught.value.type, caught.value.param, caught.value.code) == ("invalid_request_error", param, code)


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", "/v1/moderations", b"{", 400),
        ("POST", "/v1/moderations", b"", 400),
        ("POST", "/v1/moderations", b"\xff\xfe", 400),
        ("POST", "/v1/moderations", b'{"input": "\\ud800"}', 400),
        ("POST", "/v1/moderations", b'{"input": "a", "\\ud800": 1}', 400),
        ("POST", "/v1/moderations", b"[" * 100_000, 400),
        ("GET", "/v1/moderations", b"", 405),
        ("POST", "/v1/nothing", b"{}", 404),
    ],
)
def test_every_error_has_the_shape_of_openais(
    address: str, method: str, path: str, content: bytes, status: int
) -> None:
    answer = httpx.request(method, address + path, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


# The same examples in every run: what is found once is found by all. The benchmark serve_resilience draws new ones.
@settings(max_examples=150, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_body_is_too_much(fuzzed: SearchStrategy[Fuzzed], address: str, data: st.DataObject) -> None:
    path, content, content_type = data.draw(fuzzed)
    answer = httpx.post(address + path, content=content, headers={"Content-Type": content_type}, timeout=60)
    assert answer.status_code < 500, answer.text
    if not answer.is_success:
        is_googles = path == "/v1alpha1/comments:analyze"
        assert set(answer.json()) == {"error"}
        keys = {"code", "message", "status"} if is_googles else {"message", "type", "param", "code"}
        assert set(answer.json()["error"]) >= keys


def test_the_native_route_says_what_the_guard_says(address: str, guards: tuple[Path, Path]) -> None:
    messages = [{"role": "user", "content": TEXTS[1]}, {"role": "assistant", "content": TEXTS[2]}]
    answer = httpx.post(f"{address}/v1/guard", json={"messages": messages}).raise_for_status().json()
    verdicts = Guard.from_pretrained(guards[0]).classify([TEXTS[1], Exchange(TEXTS[1], TEXTS[2])])
    assert [part["score"] for part in answer["parts"]] == pytest.approx([v.score for v in verdicts], abs=1e-5)
    assert answer["score"] == max(part["score"] for part in answer["parts"])
    assert (answer["model"], answer["digest"]) == ("rayguard-tiny-0", digest(guards[0]))
    assert httpx.post(f"{address}/v1/guard", json={"prompt": ""}).is_success
    assert httpx.post(f"{address}/v1/guard", json={}).json()["error"]["code"] == "invalid_form"


@pytest.mark.usefixtures("first_guard_again")
def test_a_request_is_judged_by_the_policy_it_names(address: str, guards: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "closed.yaml").write_text("description: nothing passes\nthresholds: {unsafe: {block: 1.0e-9}}")
    (tmp_path / "wary.yaml").write_text("thresholds: {unsafe: {flag: 1.0e-9}}")
    deploy(guards[0], guards[0], policies=str(tmp_path))

    with GuardClient(address) as guard:
        until(lambda: httpx.get(f"{address}/v1/policies").json().get("closed"), "the policies are there")
        actions = {name: guard.ask("a", policy=name) for name in ("guard", "closed", "wary")}
        assert [answer.action for answer in actions.values()] == ["allow", "block", "flag"]
        assert actions["closed"].reasons == ["unsafe"] and not actions["closed"].unsafe
        with pytest.raises(GuardServiceError, match="Known: guard, closed, wary") as refused:
            guard.ask("a", policy="open")
        assert (refused.value.status, refused.value.code) == (400, "policy_not_found")
        (tmp_path / "wary.yaml").write_text("thresholds: {unsafe: {block: 1.0e-9}}")
        assert guard.ask("a", policy="wary").action == "block"  # at once
        with pytest.raises(ResponseStopped) as stopped:
            list(guard.shown(["long " * 200], policy="closed"))
        assert stopped.value.stop_at == 0
    with openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0) as client:
        create = client.moderations.create
        assert not create(input="a").results[0].flagged
        assert create(input="a", extra_headers={"Rayguard-Policy": "closed"}).results[0].flagged


def test_the_client_asks_and_streams_sync_and_async(address: str, guards: tuple[Path, Path]) -> None:
    pieces = ["Green tea ", "leaves ", "and " * 100, "jasmine."]

    async def pieces_come() -> AsyncIterator[str]:
        for piece in pieces:
            yield piece

    async def ask() -> tuple[GuardResponse, str]:
        async with AsyncGuardClient(address) as guard:
            shown = [text async for text in guard.shown(pieces_come(), prompt=TEXTS[0])]
            return await guard.ask(TEXTS[0], response=TEXTS[1]), "".join(shown)

    with GuardClient(address) as guard:
        answer = guard.ask(TEXTS[0], response=TEXTS[1])
        shown = list(guard.shown(pieces, prompt=TEXTS[0]))
    assert [part.part for part in answer.parts] == ["prompt", "response"] and answer.digest == digest(guards[0])
    assert "".join(shown) == "".join(pieces) and len(shown) > 1
    other, text = asyncio.run(ask())
    assert (other.score, text) == (answer.score, "".join(pieces))
    with GuardClient(f"http://127.0.0.1:{free_port()}", retries=0) as guard, pytest.raises(GuardServiceError) as absent:
        guard.ask("a")
    assert absent.value.status == 0


@pytest.mark.usefixtures("first_guard_again")
def test_a_shadow_guard_judges_the_same_texts_and_answers_nobody(address: str, guards: tuple[Path, Path]) -> None:
    deploy(guards[0], guards[0], shadow=str(guards[1]))
    until(lambda: state().shadow == digest(guards[1]), "the shadow is there")
    texts = [f"{text} {number}" for text in TEXTS for number in range(4)]
    answer = httpx.post(f"{address}/v1/moderations", json={"input": texts}).raise_for_status().json()
    assert answer["model"] == "rayguard-tiny-0"
    first, second = (Guard.from_pretrained(guard).classify(texts) for guard in guards)
    differ = sum(one.unsafe != other.unsafe for one, other in zip(first, second, strict=True))
    assert differ > 0
    until(lambda: state().shadow_agreed + state().shadow_disagreed == len(texts), "the shadow has judged")
    assert state().shadow_disagreed == differ


def test_perspectives_route_scores_comments_and_the_key_in_its_url_is_not_logged(
    address: str, guards: tuple[Path, Path]
) -> None:
    url = f"{address}/v1alpha1/comments:analyze?key=rg-of-somebody&alt=json"
    body = {"comment": {"text": "A tea. 日本語."}, "requestedAttributes": {"TOXICITY": {}}, "spanAnnotations": True}
    answer = httpx.post(url, json=body).raise_for_status().json()
    verdicts = Guard.from_pretrained(guards[0]).classify(["A tea. 日本語.", "A tea.", "日本語."])
    ours = ("harassment", "harassment/threatening", "hate", "hate/threatening")
    whole, *sentences = (max(verdict.categories[key] for key in ours) for verdict in verdicts)
    toxicity = answer["attributeScores"]["TOXICITY"]
    assert set(answer) == {"attributeScores"}
    assert toxicity["summaryScore"] == {"value": pytest.approx(whole, abs=1e-5), "type": "PROBABILITY"}
    assert [span["score"]["value"] for span in toxicity["spanScores"]] == pytest.approx(sentences, abs=1e-5)
    assert [(span["begin"], span["end"]) for span in toxicity["spanScores"]] == [(0, 6), (7, 11)]
    refused = httpx.post(url, json={**body, "requestedAttributes": {"FLIRTATION": {}}})
    assert (refused.status_code, refused.json()["error"]["status"]) == (400, "INVALID_ARGUMENT")
    node: Any = ray._private.worker._global_node
    logs = [path.read_bytes() for path in Path(node.get_logs_dir_path()).rglob("*") if path.is_file()]
    assert any(b"comments:analyze" in log for log in logs) and not any(b"rg-of-somebody" in log for log in logs)


@pytest.mark.usefixtures("first_guard_again")
def test_keys_are_wanted_once_there_are_some(
    address: str, guards: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add = ["--file", str(tmp_path / "keys"), "add"]
    assert keys.main([*add, "tests"]) == keys.main([*add, "few", "--tokens-per-minute", "1"]) == 0
    key, few = capsys.readouterr().out.split()
    deploy(guards[0], guards[0], keys=str(tmp_path / "keys"))

    def status(**headers: str) -> int:
        return httpx.post(f"{address}/v1/moderations", json={"input": "a"}, headers=headers).status_code

    until(lambda: status() == 401, "a key is wanted")
    assert status(Authorization=f"Bearer {key}") == 200
    with (
        openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError, match="Missing or unknown key"),
    ):
        client.moderations.create(input="a")
    read, spent, known = (
        httpx.post(f"{address}/v1/moderations", json={"input": text}, headers={"Authorization": f"Bearer {few}"})
        for text in ("first", "second", "first")
    )
    assert (read.status_code, known.status_code) == (200, 429)
    assert (spent.status_code, spent.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert int(spent.headers["retry-after"]) > 60
    assert keys.main(["--file", str(tmp_path / "keys"), "remove", "tests"]) == 0
    assert status(Authorization=f"Bearer {key}") == 401  # at once
    assert [httpx.get(address + path).status_code for path in ("/healthz", "/readyz", "/")] == [200, 200, 200]


@pytest.fixture
def changed_guard(address: str, guards: tuple[Path, Path]) -> Iterator[Callable[[float, bool], None]]:
    """Have the guard in the replica's process take some seconds more, and fail if so told, until the test has ended."""
    name = f"SERVE_REPLICA::{served_guard.APPLICATION}#Moderator#{state().replica}"
    replica: Any = ray.get_actor(name, namespace="serve")

    def run(change: Callable[[Any], None]) -> None:
        ray.get(replica.__ray_call__.remote(change))

    def change_guard(seconds: float, fails: bool) -> None:
        def change(_: Any) -> None:
            whole = Guard.whole = getattr(Guard, "whole", Guard.judge)  # type: ignore[attr-defined]

            def changed(*args: Any) -> Any:
                time.sleep(seconds)
                if fails:
                    raise RuntimeError("a text that no log may hold")
                return whole(*args)

            Guard.judge = changed  # type: ignore[method-assign]

        run(change)

    def mend(_: Any) -> None:
        Guard.judge = Guard.whole  # type: ignore[attr-defined,method-assign]

    yield change_guard
    run(mend)


@pytest.mark.usefixtures("first_guard_again")
def test_more_than_can_be_answered_in_time_is_refused_at_once(
    address: str, guards: tuple[Path, Path], changed_guard: Callable[[float, bool], None]
) -> None:
    deploy(guards[0], guards[0], deadline_seconds=0.5)
    changed_guard(0.1, False)  # however fast the machine is, a hundred batches are too many
    numbers = itertools.count()  # and none of their texts is known already

    async def statuses() -> list[tuple[int, str | None]]:
        async def ask() -> tuple[int, str | None]:
            texts = [f"{next(numbers)} {'long ' * 40}" for _ in range(16)]
            answer = await client.post(f"{address}/v1/moderations", json={"input": texts})
            return answer.status_code, answer.headers.get("retry-after")

        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=200), timeout=60) as client:
            return await asyncio.gather(*(ask() for _ in range(200)))

    def overloaded() -> bool:
        answers = asyncio.run(statuses())
        codes = {status for status, _ in answers}
        assert codes <= {200, 429}
        assert all(after is not None for status, after in answers if status != 200)
        return {200, 429} <= codes

    until(overloaded, "some are answered, some refused")
    assert digest_in_use(address) == digest(guards[0])


@pytest.mark.usefixtures("first_guard_again")
def test_what_the_guard_fails_on_is_blocked_and_says_so(
    address: str, guards: tuple[Path, Path], changed_guard: Callable[[float, bool], None]
) -> None:
    routes: dict[str, dict[str, Any]] = {
        "/v1/moderations": {"input": "not judged"},
        "/v1/guard": {"prompt": "not judged"},
        "/v1/guard/stream": {"response": "not judged", "done": True},
        litellm.PATH: {"input_type": "request", "texts": ["not judged"]},
        perspective.PATH: {"comment": {"text": "not judged"}, "requestedAttributes": {"TOXICITY": {}}},
    }

    def asked() -> dict[str, httpx.Response]:
        return {route: httpx.post(address + route, json=body) for route, body in routes.items()}

    changed_guard(0.0, True)
    answers = asked()
    scores = answers.pop(perspective.PATH)
    assert (scores.status_code, scores.json()["error"]["status"]) == (500, "INTERNAL")
    assert {answer.headers["rayguard-degraded"] for answer in answers.values()} == {"model_failed"}
    assert not any("rayguard-guard" in answer.headers for answer in answers.values())  # no guard has read it
    moderated, judged, streamed, guarded = (answer.json() for answer in answers.values())
    assert moderated["results"][0]["flagged"] and not any(moderated["results"][0]["categories"].values())
    assert (judged["action"], judged["degraded"]) == ("block", "model_failed")
    assert (streamed["action"], streamed["stop_at"], streamed["release"]) == ("block", 0, 0)
    assert guarded["blocked_reason"] == "Blocked unread: the guard failed (model_failed)."

    deploy(guards[0], guards[0], on_failure="error")
    until(lambda: {answer.status_code for answer in asked().values()} == {500}, "errors are answered in its place")
    deploy(guards[0], guards[0], deadline_seconds=1.0)
    until(lambda: httpx.post(f"{address}/v1/guard", json={"prompt": "a"}).is_success, "it blocks again")
    changed_guard(3.0, True)
    late = httpx.post(f"{address}/v1/guard", json={"prompt": "late"})
    assert late.headers["rayguard-degraded"] == late.json()["degraded"] == "deadline_exceeded"


def test_answers_are_as_the_schema_says(address: str) -> None:
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    ended = subprocess.run(
        [
            *(Path(sys.executable).with_name("schemathesis"), "run", f"{address}/openapi.json", "--checks", checks),
            *("--phases", "examples,coverage,fuzzing", "--max-examples", "10", "--seed", "1", "--no-color"),
        ],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout


def test_readyz_says_that_the_model_answers(address: str) -> None:
    assert httpx.get(f"{address}/readyz").json() == httpx.get(f"{address}/healthz").json()


def test_healthz_names_the_guard(address: str, guards: tuple[Path, Path]) -> None:
    answer = httpx.get(f"{address}/healthz")
    assert answer.json() == {"status": "ok", "guard": "tiny-0", "digest": digest(guards[0])}


def test_logs_hold_no_text(address: str) -> None:
    secret = "correct horse battery staple"
    for body in ({"input": secret}, {"input": {"text": secret}}, {"input": secret, "model": 3}):
        httpx.post(f"{address}/v1/moderations", json=body)
    node: Any = ray._private.worker._global_node
    logs = Path(node.get_logs_dir_path())
    replicas = [path.read_text() for path in logs.rglob("replica_*.log")]
    assert any(f"1 texts, {len(secret)} characters, sha256 {text_digest(secret)}" in log for log in replicas)
    assert not [path for path in logs.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


@pytest.mark.usefixtures("first_guard_again")
def test_swap_loses_no_request_and_every_answer_is_of_one_guard(address: str, guards: tuple[Path, Path]) -> None:
    answers: list[tuple[str, bool]] = []

    async def swap_under_load() -> None:
        async with served_guard.load(address, TEXTS[0], answers):
            await asyncio.to_thread(until, lambda: len(answers) > 20, "answers of the first guard")
            await asyncio.to_thread(deploy, guards[0], guards[1])
            await asyncio.to_thread(until, lambda: digest_in_use(address) == digest(guards[1]), "the swap")
            seen = len(answers)
            await asyncio.to_thread(until, lambda: len(answers) > seen + 20, "answers of the second guard")

    replica = state().replica
    asyncio.run(swap_under_load())
    opinions = {f"rayguard-tiny-{guard.name}": expected(guard, TEXTS[0])["flagged"] for guard in guards}
    assert set(opinions.values()) == {False, True}
    assert {model for model, _ in answers} == set(opinions)
    assert all(flagged == opinions[model] for model, flagged in answers)
    assert state().replica == replica  # swapped in place


@pytest.mark.usefixtures("first_guard_again")
@pytest.mark.parametrize("fault", ["missing", "damaged"])
def test_a_bad_guard_is_refused_and_the_old_one_stays(
    address: str, guards: tuple[Path, Path], tmp_path: Path, fault: str
) -> None:
    bad = tmp_path / "guard"
    if fault == "damaged":
        tiny_guard(bad, seed=1)
        (bad / "model.safetensors").write_bytes(b"not weights")
    answers: list[tuple[str, bool]] = []

    async def offer_under_load() -> None:
        async with served_guard.load(address, TEXTS[0], answers):
            await asyncio.to_thread(deploy, guards[0], bad)
            await asyncio.to_thread(until, lambda: state().refused is not None, "the bad guard is refused")
            seen = len(answers)
            await asyncio.to_thread(until, lambda: len(answers) > seen + 20, "answers after it")

    asyncio.run(offer_under_load())
    assert {model for model, _ in answers} == {"rayguard-tiny-0"}
    assert digest_in_use(address) == digest(guards[0])
    assert str(bad) in str(state().refused)

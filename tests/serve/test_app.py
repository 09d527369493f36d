"""One replica without Serve: what keys are charged for, and policies and guards that change under it."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import HTTPException, Request

from guardrail.guard import Guard, Verdict
from serve import middleware
from serve.admission import Admission, OverBudget, Overloaded, TooMuch
from serve.app import Moderator
from serve.keys import Key
from serve.middleware import _KEY
from serve.native import GuardRequest
from serve.telemetry import measure_requests
from tests.tiny_guard import tiny_guard

FEW = Key("few", "0" * 64, tokens_per_minute=1)
STRICT = "thresholds: {unsafe: {block: 0.2}}"


def replica() -> Any:
    """A replica as `serve.app` writes it, without what Serve wraps around it."""
    deployment: Any = Moderator
    return deployment.func_or_class.__mro__[1]()


@pytest.fixture
def moderator() -> Iterator[Any]:
    yield replica()
    measure_requests(None)


@pytest.fixture(scope="module")
def guards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    first, second = (tiny_guard(tmp_path_factory.mktemp("guards") / str(seed), seed=seed) for seed in range(2))
    return first, second


@pytest.fixture
def configure(moderator: Any, guards: tuple[Path, Path]) -> Callable[..., None]:
    """Give the replica another `user_config`; the guard is the first one unless named."""

    def configure(**config: Any) -> None:
        config = {"guard": guards[0], "keys": None, "backend": "torch", **config}
        asyncio.run(moderator.reconfigure(config))

    return configure


async def asked(moderator: Any, text: str, key: Key | None = None) -> tuple[str, str]:
    """Ask about a text; return which guard judged it, by which policy."""
    scope = {"type": "http", "path": "/v1/guard", "server": ("test", 80), "query_string": b"", "headers": [], _KEY: key}
    answer = await moderator.guard(GuardRequest(prompt=text), Request(scope))
    return answer.model, answer.policy


def test_who_hangs_up_while_the_texts_are_read_has_spent_the_tokens(
    moderator: Any, configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure()
    judge, reads, may_end = Guard.judge, threading.Event(), threading.Event()

    def slowly(self: Guard, prepared: Any) -> list[Verdict]:
        reads.set()
        assert may_end.wait(10)
        return judge(self, prepared)

    monkeypatch.setattr(Guard, "judge", slowly)

    async def hang_up() -> None:
        request = asyncio.create_task(asked(moderator, "first", FEW))
        try:
            assert await asyncio.to_thread(reads.wait, 10)
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            with pytest.raises(OverBudget):
                moderator._judging.budgets.check(FEW)
        finally:
            may_end.set()
        await moderator._judging._judges._worker
        with pytest.raises(OverBudget):
            moderator._judging.budgets.check(FEW)

    asyncio.run(hang_up())


def test_a_request_is_judged_by_the_guard_that_was_in_use_when_it_was_prepared(
    moderator: Any, configure: Callable[..., None], guards: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure()
    prepare, prepares, may_end = Guard.prepare, threading.Event(), threading.Event()

    def slowly(self: Guard, texts: Any) -> Any:
        if self.card.version == "tiny-0":
            prepares.set()
            assert may_end.wait(10)
        return prepare(self, texts)

    monkeypatch.setattr(Guard, "prepare", slowly)

    async def swap_meanwhile() -> tuple[str, str]:
        request = asyncio.create_task(asked(moderator, "first"))
        try:
            assert await asyncio.to_thread(prepares.wait, 10)
            await moderator.reconfigure({"guard": guards[1], "keys": None, "backend": "torch"})
        finally:
            may_end.set()
        return (await request)[0], (await asked(moderator, "second"))[0]

    assert asyncio.run(swap_meanwhile()) == ("rayguard-tiny-0", "rayguard-tiny-1")


@pytest.mark.parametrize(("waiting", "text", "refusal"), [(60, "a", Overloaded), (0, "long " * 20_000, TooMuch)])
def test_a_refused_request_spends_no_tokens(
    moderator: Any, configure: Callable[..., None], waiting: int, text: str, refusal: type[Exception]
) -> None:
    configure()
    now = [0.0]
    moderator._judging.admission = Admission(10.0, lambda: now[0], stages=2)
    with moderator._judging.admission.at_work(20):
        now[0] += 2.0  # a unit takes 0.1 s
    with moderator._judging.admission.admitted(waiting), pytest.raises(refusal):
        asyncio.run(asked(moderator, text, FEW))
    asyncio.run(asked(moderator, "first", FEW))
    with pytest.raises(OverBudget):
        asyncio.run(asked(moderator, "second", FEW))


def test_a_request_may_have_so_many_tokens(moderator: Any, configure: Callable[..., None]) -> None:
    configure(max_tokens=10)
    asyncio.run(asked(moderator, "a" * 43))
    with pytest.raises(TooMuch) as refused:
        asyncio.run(asked(moderator, "a" * 80))
    assert (refused.value.share, refused.value.max_tokens) == (50, 10)


@pytest.mark.parametrize("wrong", [{}, {"keys": None, "guards": "b"}], ids=["without keys", "misspelt"])
def test_a_configuration_that_is_wrong_or_silent_on_keys_changes_nothing(
    moderator: Any, configure: Callable[..., None], guards: tuple[Path, Path], wrong: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="keys|guards"):  # nor does a replica start with it
        asyncio.run(moderator.reconfigure({"guard": guards[0], **wrong}))
    configure()
    asyncio.run(moderator.reconfigure({"guard": guards[1], **wrong}))
    assert asyncio.run(asked(moderator, "a"))[0] == "rayguard-tiny-0"
    assert any(name in moderator._refused for name in ("keys", "guards"))


def test_keys_and_a_shadow_that_are_broken_hold_no_guard_back_and_let_nobody_in(
    moderator: Any, configure: Callable[..., None], guards: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("no key's line")
    with pytest.raises(ValueError, match="line 1"):
        configure(keys=tmp_path / "keys")
    configure()
    try:
        configure(guard=guards[1], keys=tmp_path / "keys", shadow=tmp_path / "absent")
        assert moderator._refused is None and moderator._judging.in_use().guard.card.version == "tiny-1"
        assert middleware._keys is not None and middleware._keys.find("any") is None
    finally:
        configure()


def test_a_replica_whose_model_hangs_is_unhealthy(moderator: Any) -> None:
    now = [0.0]
    moderator._judging.admission = Admission(30.0, lambda: now[0], stages=2)
    with moderator._judging.admission.at_work(1):
        now[0] = 299.0
        moderator.check_health()
        now[0] = 301.0
        with pytest.raises(RuntimeError, match="for minutes"):
            moderator.check_health()
    moderator.check_health()


def test_what_was_not_judged_is_paid_back_and_waits_no_more(
    moderator: Any, configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[float] = []
    monkeypatch.setattr(
        moderator._metrics, "set", lambda name, value: waiting.append(value) if name == "rayguard_waiting" else None
    )

    def fails(self: Guard, prepared: Any) -> list[Verdict]:
        raise FloatingPointError

    configure()
    with monkeypatch.context() as patched:
        patched.setattr(Guard, "judge", fails)
        asyncio.run(asked(moderator, "first", FEW))
    moderator._judging.budgets.check(FEW)
    assert max(waiting) > 0 and waiting[-1] == 0


def test_the_guard_before_is_not_loaded_again(
    moderator: Any, configure: Callable[..., None], guards: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure()
    first = moderator._judging.in_use().guard
    configure(guard=guards[1])
    monkeypatch.setattr("serve.app.load_checked", lambda *_: pytest.fail("loaded again"))
    configure()
    assert moderator._judging.in_use().guard is first


def test_a_stalled_model_is_not_ready_and_a_busy_one_is(moderator: Any, configure: Callable[..., None]) -> None:
    configure()
    now = [0.0]
    moderator._judging.admission = Admission(30.0, lambda: now[0], stages=2)
    with moderator._judging.admission.at_work(64):
        now[0] = 59.0
        assert asyncio.run(moderator.readyz()).status == "ok"
        now[0] = 61.0
        with pytest.raises(HTTPException) as refused:
            asyncio.run(moderator.readyz())
    assert refused.value.status_code == 503


def test_a_request_has_the_policy_it_names_or_that_of_its_key(
    moderator: Any, configure: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / "strict.yaml").write_text(STRICT)
    configure(policies=tmp_path)
    key = Key("a", "0" * 64, policy="strict")
    assert asyncio.run(asked(moderator, "a", key)) == ("rayguard-tiny-0", "strict")
    assert asyncio.run(asked(moderator, "a")) == ("rayguard-tiny-0", "guard")


@pytest.mark.parametrize(("folder", "policy"), [("policies", "draft"), ("policies", "absent"), ("absent", "strict")])
def test_policies_that_cannot_be_read_hold_no_guard_back_and_the_old_ones_stay(
    moderator: Any,
    configure: Callable[..., None],
    guards: tuple[Path, Path],
    tmp_path: Path,
    folder: str,
    policy: str,
) -> None:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "strict.yaml").write_text(STRICT)
    (tmp_path / "policies" / "draft.yaml").write_text("thresholds: {")
    configure(policies=tmp_path / "policies", policy="strict")
    assert asyncio.run(asked(moderator, "a")) == ("rayguard-tiny-0", "strict")
    configure(guard=guards[1], policies=tmp_path / folder, policy=policy)
    assert asyncio.run(asked(moderator, "a")) == ("rayguard-tiny-1", "strict")


def test_a_replica_does_not_begin_with_policies_that_cannot_be_read(
    moderator: Any, configure: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / "draft.yaml").write_text("thresholds: {")
    with pytest.raises(ValueError, match="no policy 'draft'"):
        configure(policies=tmp_path, policy="draft")
    assert moderator._judging.used is None

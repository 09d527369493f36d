"""A shadow guard: judges when nothing waits, counts where it disagrees, lets go of what is too much."""

import asyncio
from collections.abc import Sequence
from typing import Any

from guardrail.guard import Verdict
from serve.shadow import Shadow


class Shouting:
    """A guard that finds texts unsafe that are in capitals, and fails on empty ones."""

    def classify(self, texts: Sequence[str]) -> list[Verdict]:
        if "" in texts:
            raise RuntimeError("secret")
        return [Verdict(text.isupper(), 0.0, {}) for text in texts]


class Counts(dict[str, float]):
    """Metrics."""

    def count(self, name: str, value: float, **tags: str) -> None:
        self[tags["outcome"]] = self.get(tags["outcome"], 0) + value


def offered(texts: Sequence[str], busy: bool = False) -> tuple[Shadow, Counts]:
    """A shadow that was offered texts which the guard in use finds safe."""
    counts = Counts()
    guard: Any = Shouting()

    async def offer() -> Shadow:
        state = {"busy": busy}
        shadow = Shadow(guard, lambda: state["busy"], counts)  # type: ignore[arg-type]
        shadow.offer(texts, [Verdict(False, 0.0, {})] * len(texts))
        if busy:
            await asyncio.sleep(0)
            assert shadow.agreed == shadow.disagreed == 0
            state["busy"] = False
        assert shadow._task
        await asyncio.wait_for(shadow._task, 10)
        return shadow

    return asyncio.run(offer()), counts


def test_disagreements_are_counted() -> None:
    shadow, counts = offered(["a", "B", "c"] * 20, busy=True)
    assert (shadow.agreed, shadow.disagreed) == (40, 20)
    assert (counts["agrees"], counts["disagrees"], counts["skipped"]) == (40, 20, 0)


def test_what_is_too_much_is_let_go_of_and_a_failure_is_nobodys() -> None:
    shadow, counts = offered(["a"] * 300)
    assert (shadow.agreed, counts["skipped"]) == (256, 44)
    shadow, counts = offered(["", *["a"] * 20])
    assert (shadow.agreed, counts["skipped"]) == (5, 16)  # all but the second batch


def test_long_texts_are_as_many_as_their_length() -> None:
    shadow, counts = offered(["a" * 512 * 100] * 4)
    assert (shadow.agreed, counts["skipped"]) == (2, 2)
    shadow, counts = offered(["a" * 512 * 1000] * 2)
    assert (shadow.agreed, counts["skipped"]) == (1, 1)  # one is judged, however long

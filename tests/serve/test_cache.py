"""Verdicts that are remembered."""

from guardrail.guard import Verdict
from guardrail.reading import Exchange
from serve.cache import VerdictCache


def verdict(score: float) -> Verdict:
    return Verdict(False, score, {})


def test_a_text_is_known_to_the_last_character_until_others_take_its_place() -> None:
    cache = VerdictCache(2)
    cache.put(["a", "b"], [verdict(0.1), verdict(0.2)])
    assert cache.get(["a", "A", "a "]) == [verdict(0.1), None, None]
    assert cache.get([Exchange("a", "b"), "a\n\nb"]) == [None, None]
    cache.put(["c"], [verdict(0.3)])
    assert cache.get(["a", "b", "c"]) == [verdict(0.1), None, verdict(0.3)]  # "a" was asked for after "b"


def test_long_texts_and_a_cache_of_nothing_keep_nothing() -> None:
    cache = VerdictCache(2)
    cache.put(["x" * 100_000], [verdict(0.1)])
    assert cache.get(["x" * 100_000]) == [None]
    none = VerdictCache(0)
    none.put(["a"], [verdict(0.1)])
    assert none.get(["a"]) == [None]

"""Policies: what a file may hold, and what is done with scores."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guardrail.policy import Policy, guards_own, read_policy, strictest
from guardrail.taxonomy import CATEGORIES, UNSAFE

LABELS = (UNSAFE, *CATEGORIES)
SCORES = st.fixed_dictionaries({label: st.floats(0, 1) for label in LABELS})


def policy(**thresholds: Any) -> Policy:
    return Policy.model_validate({"thresholds": thresholds})


def scores(**given: float) -> dict[str, float]:
    return dict.fromkeys(LABELS, 0.0) | given


def test_the_strictest_label_counts_and_all_that_are_as_strict_are_told() -> None:
    mild = policy(unsafe={"flag": 0.5, "block": 0.9}, hate={"block": 0.4}, fraud={"flag": 0.1})
    assert mild.decide(scores()).action == "allow"
    flagged = mild.decide(scores(unsafe=0.5, fraud=0.6))
    assert (flagged.action, flagged.reasons) == ("flag", ("fraud", "unsafe"))
    blocked = mild.decide(scores(unsafe=0.95, hate=0.4, fraud=1.0))
    assert (blocked.action, blocked.reasons) == ("block", ("unsafe", "hate"))
    assert strictest([mild.decide(scores()), blocked]) is blocked


@given(SCORES, st.floats(0, 2))
@example(dict.fromkeys(LABELS, 0.0), 0.0)
@example(dict.fromkeys(LABELS, 1.0), 1.5)
def test_without_a_policy_a_guard_blocks_what_it_finds_unsafe(given: dict[str, float], threshold: float) -> None:
    assert (guards_own(threshold).decide(given).action == "block") == (given[UNSAFE] >= threshold)


@given(SCORES, st.sampled_from(LABELS), st.floats(0, 1))
def test_a_higher_score_is_never_treated_more_mildly(given: dict[str, float], label: str, more: float) -> None:
    order = ["allow", "flag", "block"]
    strict = policy(unsafe={"flag": 0.3, "block": 0.8}, violence={"block": 0.5}, **{"self-harm": {"flag": 0.2}})
    higher = given | {label: max(given[label], more)}
    assert order.index(strict.decide(higher).action) >= order.index(strict.decide(given).action)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("thresholds: {hat: {block: 0.5}}", "did you mean 'hate'"),
        ("thresholds: {hate: {block: 1.5}}", "thresholds.hate.block"),
        ("thresholds: {hate: {flag: 0.5, block: 0.5}}", "must be under 'block'"),
        ("thresholds: {hate: {}}", "give 'flag', 'block' or both"),
        ("thresholds: {}", "thresholds"),
        ("threshold: {hate: {block: 0.5}}", "threshold"),
        ("- a", "dictionary"),
        ("a: [", "cannot read the policy"),
        ("\ufeff\x00", "cannot read the policy"),
    ],
)
def test_what_is_no_policy_is_refused_with_the_file_and_what_is_wrong(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "strict.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as refused:
        read_policy(path)
    assert str(path) in str(refused.value)

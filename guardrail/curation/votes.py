"""The stage that asks the judges: records whose label most of those that voted contradict."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from guardrail.curation.stage import Drop, Judge, Survey

#: What a judge's score is called in a record's `scores`: the probability in [0, 1] that the record is unsafe. A judge
#: that refused, or whose answer could not be read, has none.
JUDGE = "judge:"


class JudgesVote:
    """Generated records whose label a strict majority of their judges contradicts.

    A tie contradicts nothing, and a record that nobody judged is kept. What people labelled is not put to the vote.
    """

    name = "judges"
    settings: Mapping[str, Any] = {}

    def prepare(self, survey: Survey) -> Judge:
        """Return the judge."""
        return _judge_votes


def _judge_votes(batch: pa.Table) -> list[Drop | None]:
    columns: list[Sequence[Any]] = [batch[name].to_pylist() for name in ("unsafe", "method", "scores")]
    return [
        None if method == "seed" else vote_drop(unsafe, dict(scores or ()))
        for unsafe, method, scores in zip(*columns, strict=True)
    ]


def vote_drop(unsafe: bool, scores: Mapping[str, float | None]) -> Drop | None:
    """Return how judges voted against a label, or None; a score of exactly 0.5, or none at all, is no vote.

    Args:
        unsafe: the label.
        scores: of the record; those that start with `JUDGE` count.
    """
    votes = {
        name.removeprefix(JUDGE): score > 0.5
        for name, score in scores.items()
        if name.startswith(JUDGE) and score is not None and 0 <= score <= 1 and score != 0.5
    }
    against = sorted(name for name, vote in votes.items() if vote != unsafe)
    if 2 * len(against) <= len(votes):
        return None
    word = "safe" if unsafe else "unsafe"
    return Drop("judges disagree", f"{word} by {len(against)} of {len(votes)}: {', '.join(against)}")

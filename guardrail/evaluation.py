"""Measuring a guard: on labelled sets, and against attacks."""

from collections.abc import Sequence
from typing import Any

from guardrail.datasets import EvaluationItem
from guardrail.guard import UNSAFE, Guard
from guardrail.metrics import tagged_metrics
from guardrail.records import Record
from guardrail.text import joined


def evaluate_set(guard: Guard, items: Sequence[EvaluationItem]) -> dict[str, Any]:
    """Return the metrics of a guard on an evaluation set, at the guard's own threshold; see `tagged_metrics`."""
    scores = guard.probabilities([joined(item.text, item.response) for item in items])[:, 0]
    return tagged_metrics(
        [item.unsafe for item in items], scores.tolist(), [item.tags for item in items], guard.card.thresholds[UNSAFE]
    )


def misjudged(guard: Guard, records: Sequence[Record]) -> list[Record]:
    """Return the labelled records that the guard gets wrong: of attacks, those that succeed."""
    verdicts = guard.classify([joined(record["text"], record["response"]) for record in records]) if records else []
    return [record for verdict, record in zip(verdicts, records, strict=True) if verdict.unsafe != record["unsafe"]]


def success_rate(guard: Guard, attacks: Sequence[Record]) -> float | None:
    """Return the share of labelled texts that the guard gets wrong, in [0, 1], or None without any.

    Over attacks that is their success rate, over benign records the false-positive rate.
    """
    return len(misjudged(guard, attacks)) / len(attacks) if attacks else None

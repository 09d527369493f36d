"""Measuring a guard: on labelled sets, and against attacks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from guardrail.evaluation_items import EvaluationItem
from guardrail.guard import Guard
from guardrail.metrics import binary_metrics, tagged_metrics, wilson
from guardrail.reading import reading_of
from guardrail.records import Record
from guardrail.remote import Moderation, RemoteGuard, TargetError
from guardrail.targets import moderation_of
from guardrail.taxonomy import CATEGORIES, UNSAFE


def evaluate_set(
    guard: Guard | RemoteGuard, items: Sequence[EvaluationItem], *, seed: int | None = None
) -> dict[str, Any]:
    """Return the metrics of a guard, by its own decisions, on an evaluation set; see `tagged_metrics`.

    Of a service f1, precision, recall and fpr are of its decisions, the others of its scores. `threshold` and `ece` are
    None: it tells no threshold, and a highest category is no probability that could be calibrated.

    Where a guard of ours reads any of the texts in several windows, `tags` has "one window" and "several windows", too:
    thresholds are fitted mostly on short texts, and the highest of several windows counts.

    With a seed (of the bootstrap) there are `intervals` and `categories` (`category_metrics`), too. Where a service
    refuses texts, `refused` counts them, and the rest is measured.

    Raises:
        TargetError: see `RemoteGuard.moderate`; or it refuses every text.
    """
    said = moderation_of(guard, [reading_of(item.text, item.response) for item in items], skip_refused=True)
    judged = np.isfinite(said.probabilities[:, 0])
    if items and not judged.any():
        raise TargetError(
            f"the service refuses all {len(items)} texts of a set, or its answers hold no verdict: it may take shorter "
            "ones only, or be asked in a format that is not its model's, or that has no question about responses"
        )
    items = [item for item, read in zip(items, judged, strict=True) if read]
    windows = None if said.several_windows is None else said.several_windows[judged]
    said = Moderation(said.probabilities[judged], said.flagged[judged], windows)
    thresholds = None if isinstance(guard, RemoteGuard) else guard.card.thresholds
    metrics = tagged_metrics(
        [item.unsafe for item in items],
        said.probabilities[:, 0],
        _tags(items, said.several_windows),
        thresholds[UNSAFE] if thresholds else None,
        said.flagged,
        seed=seed,
    )
    if seed is not None:
        metrics["categories"] = category_metrics([item.categories for item in items], said, thresholds)
    if not judged.all():
        metrics["refused"] = int((~judged).sum())
    return metrics


def _tags(items: Sequence[EvaluationItem], several_windows: np.ndarray | None) -> list[list[str]]:
    """Return the tags of each item, and in how many windows it was read if that is more than one of any."""
    tags = [item.tags or [] for item in items]
    if several_windows is None or not several_windows.any():
        return tags
    read_in = np.where(several_windows, "several windows", "one window").tolist()
    return [[*own, windows] for own, windows in zip(tags, read_in, strict=True)]


def category_metrics(
    categories: Sequence[Sequence[str] | None], said: Moderation, thresholds: Mapping[str, float] | None
) -> dict[str, dict[str, Any]]:
    """Return the metrics of each category of ours that a set has, by its key.

    `count` items have the category; `recall` is the share of them that is flagged as unsafe, whatever for, with its
    Wilson interval in `intervals`. `f1`, at `threshold`, and `auprc` are of the category's own score, over the `known`
    items: those whose categories are known, benign ones among them. They are None where all of these, or none, have
    the category, and where the guard does not score it; `f1` and `threshold` also where it tells no thresholds.

    Args:
        categories: of each item; None: unknown.
        said: what the guard says of each item.
        thresholds: the guard's, by label.
    """
    known = np.array([each is not None for each in categories], dtype=bool)
    found: dict[str, dict[str, Any]] = {}
    for column, key in enumerate(CATEGORIES, start=1):  # column 0 is "unsafe"
        has = np.array([key in (each or ()) for each in categories], dtype=bool)
        count, flagged = int(has.sum()), int((has & said.flagged).sum())
        if not count:
            continue
        threshold = thresholds.get(key, thresholds[UNSAFE]) if thresholds else None
        scores = said.probabilities[known, column]
        own = binary_metrics(has[known], scores, threshold, None if thresholds else said.flagged[known])
        scored = bool(scores.any())  # a service has no score, 0, for a category that is none of its own
        found[key] = {
            "count": count,
            "recall": flagged / count,
            "intervals": {"recall": wilson(flagged, count)},
            "known": len(scores),
            "f1": own["f1"] if thresholds else None,
            "auprc": own["auprc"] if scored else None,
            "threshold": threshold,
        }
    return found


def misjudged(guard: Guard, records: Sequence[Record]) -> list[Record]:
    """Return the labelled records that the guard gets wrong: of attacks, those that succeed."""
    verdicts = guard.classify([reading_of(record["text"], record["response"]) for record in records]) if records else []
    return [record for verdict, record in zip(verdicts, records, strict=True) if verdict.unsafe != record["unsafe"]]


def success_rate(guard: Guard, attacks: Sequence[Record]) -> float | None:
    """Return the share of labelled texts that the guard gets wrong, in [0, 1], or None without any.

    Over attacks that is their success rate, over benign records the false-positive rate.
    """
    return len(misjudged(guard, attacks)) / len(attacks) if attacks else None

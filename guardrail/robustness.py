"""How much of a guard's judgement is left when requests are written anew by deterministic transforms."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from guardrail.evaluation_items import EvaluationItem
from guardrail.generable import generation_seeds
from guardrail.guard import Guard
from guardrail.metrics import wilson
from guardrail.records import Record, make_record
from guardrail.remote import RemoteGuard
from guardrail.targets import moderation_of
from guardrail.transforms import transformed


def robustness(
    guard: Guard | RemoteGuard, items: Sequence[EvaluationItem], names: Sequence[str], *, sample: int, seed: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each transform by name with the recall and the fpr of a guard's decisions on requests that it has written.

    Only requests that may be written anew are (`generation_seeds`), at most `sample` of each label, drawn at random,
    the same for every transform; of these, a transform is measured on those that it changes, and that a service judges
    both ways: `positives` unsafe and `negatives` benign ones. `plain_recall` and `plain_fpr` are of the same requests
    as they were; `recall_ratio` and `benign_fpr_delta` compare the two. What cannot be defined (no request of a label,
    nothing recalled) is None.
    `intervals` of recall and fpr are Wilson's.

    Raises:
        ValueError: there is no such transform.
        TargetError: see `RemoteGuard.moderate`; what was yielded before stays true.
    """
    requests = _sampled(items, sample, seed)
    unsafe = np.array([record["unsafe"] for record in requests], dtype=bool)
    plain = moderation_of(guard, [record["text"] for record in requests], skip_refused=True)
    judged = np.isfinite(plain.probabilities[:, 0])
    for name in names:
        written = [transformed(record, name, seed)["text"] for record in requests]
        changed = np.array([text != each["text"] for text, each in zip(written, requests, strict=True)], dtype=bool)
        changed &= judged
        flagged = np.zeros(len(requests), dtype=bool)
        said = moderation_of(guard, [written[place] for place in np.flatnonzero(changed)], skip_refused=True)
        flagged[changed] = said.flagged
        changed[changed] = np.isfinite(said.probabilities[:, 0])
        yield name, _compared(plain.flagged, flagged, changed & unsafe, changed & ~unsafe)


def add_robustness(
    metrics: dict[str, dict[str, Any]],
    guard: Guard | RemoteGuard,
    sets: Mapping[str, Sequence[EvaluationItem]],
    names: Sequence[str],
    *,
    sample: int,
    seed: int,
) -> None:
    """Put what `robustness` finds of each set into its metrics, one transform after the other, under "transforms".

    Raises:
        as `robustness`; what was found before is there.
    """
    for of_set, items in sets.items():
        metrics[of_set]["transforms"] = {}
        for transform, values in robustness(guard, items, names, sample=sample, seed=seed):
            metrics[of_set]["transforms"][transform] = values


def _sampled(items: Sequence[EvaluationItem], sample: int, seed: int) -> list[Record]:
    """Return the requests to write anew, in the order of their set."""
    random = np.random.default_rng(seed)
    requests = generation_seeds(
        make_record(item.text, unsafe=item.unsafe, source="", categories=item.categories, response=item.response)
        for item in items
    )
    chosen: set[int] = set()
    for label in (True, False):
        places = [place for place, record in enumerate(requests) if record["unsafe"] == label]
        chosen.update(random.permutation(places)[:sample].tolist())
    return [requests[place] for place in sorted(chosen)]


def _compared(plain: np.ndarray, flagged: np.ndarray, unsafe: np.ndarray, benign: np.ndarray) -> dict[str, Any]:
    """Return the figures of one transform from decisions before and after it, and what it changes of each label."""
    positives, negatives = int(unsafe.sum()), int(benign.sum())
    hits, alarms = int(flagged[unsafe].sum()), int(flagged[benign].sum())
    plain_hits, plain_alarms = int(plain[unsafe].sum()), int(plain[benign].sum())
    return {
        "positives": positives,
        "negatives": negatives,
        "recall": hits / positives if positives else None,
        "fpr": alarms / negatives if negatives else None,
        "intervals": {"recall": wilson(hits, positives), "fpr": wilson(alarms, negatives)},
        "plain_recall": plain_hits / positives if positives else None,
        "plain_fpr": plain_alarms / negatives if negatives else None,
        "recall_ratio": hits / plain_hits if plain_hits else None,
        "benign_fpr_delta": (alarms - plain_alarms) / negatives if negatives else None,
    }

"""What a guard says of each item of its evaluation sets, kept so that curves need no guard; no texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy.special import expit

from guardrail.evaluation import evaluate_set
from guardrail.evaluation_items import EvaluationItem
from guardrail.guard import Guard, Prepared

#: `logit` is the model's for "unsafe", `score` what temperature made of it, from which a low one leaves no way back.
SCORES = pa.schema(
    [
        ("set", pa.string()),
        ("id", pa.string()),
        ("unsafe", pa.bool_()),
        ("logit", pa.float64()),
        ("score", pa.float64()),
    ]
)


class _RecordingGuard(Guard):
    """A guard that keeps the logits it gave last: a set's metrics and its scores are of one reading."""

    given: np.ndarray

    def read(self, prepared: Sequence[Prepared]) -> np.ndarray:
        """Return the model's logits, float64 [len(prepared), len(LABELS)], and keep them in `given`."""
        self.given = super().read(prepared)
        return self.given


def evaluate_sets(
    guard: Guard, sets: Mapping[str, Sequence[EvaluationItem]], seed: int
) -> tuple[dict[str, dict[str, Any]], pa.Table]:
    """Return the metrics of each set, with intervals and categories, and a table of `SCORES`.

    Args:
        guard: to measure.
        sets: items by the set's name.
        seed: of the bootstrap behind the intervals.
    """
    recording = _RecordingGuard(guard.backend, guard.tokenizer, guard.card)
    metrics, tables = {}, []
    for name, items in sets.items():
        metrics[name] = evaluate_set(recording, items, seed=seed)
        logits = recording.given[:, 0]
        columns = {
            "set": [name] * len(items),
            "id": [item.id for item in items],
            "unsafe": [item.unsafe for item in items],
            "logit": logits,
            "score": expit(logits / guard.card.temperature),
        }
        tables.append(pa.table(columns, schema=SCORES))
    return metrics, pa.concat_tables([*tables, SCORES.empty_table()])


@dataclass(frozen=True)
class SetScores:
    """Labels of a set's items, bool [n], and their scores in [0, 1], before and after temperature, float64 [n]."""

    unsafe: np.ndarray
    before: np.ndarray
    scores: np.ndarray


def read_scores(path: Path) -> dict[str, SetScores]:
    """Return the scores in a file of `SCORES`, by set; none where there is no such file."""
    if not path.exists():
        return {}
    table = pq.read_table(path, schema=SCORES)
    found = {}
    for name in pc.unique(table["set"]).to_pylist():
        own = table.filter(pc.equal(table["set"], name))
        logits, scores = own["logit"].to_numpy(), own["score"].to_numpy()
        found[name] = SetScores(own["unsafe"].to_numpy(), expit(logits), scores)
    return found

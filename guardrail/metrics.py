"""Figures about a classifier and about an attack, and their intervals."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

_Z95 = 1.959963984540054


def wilson(successes: int, trials: int) -> list[float] | None:
    """Return the 95% Wilson score interval [low, high] of a share, or None without trials.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    if trials == 0:
        return None
    share = successes / trials
    z2 = _Z95 * _Z95
    centre = share + z2 / (2 * trials)
    spread = _Z95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    scale = 1 + z2 / trials
    return [max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)]


def binary_metrics(unsafe: Sequence[bool], scores: Sequence[float], threshold: float) -> dict[str, Any]:
    """Return the metrics of one evaluation set as `evaluate.py` writes them.

    Args:
        unsafe: the true labels.
        scores: calibrated probabilities in [0, 1].
        threshold: the guard's own; never one tuned on this set.

    Returns:
        n, positives, f1, precision, recall, fpr, auprc, auroc, recall_at_1pct_fpr, ece, threshold; a metric that the
        set cannot define (only positives, only negatives) is None.
    """
    truth = np.asarray(unsafe, dtype=bool)
    probability = np.asarray(scores, dtype=float)
    flagged = probability >= threshold
    positives, negatives = int(truth.sum()), int((~truth).sum())
    hits = int((flagged & truth).sum())
    both = positives > 0 and negatives > 0
    return {
        "n": len(truth),
        "positives": positives,
        "f1": 2 * hits / (positives + int(flagged.sum())) if both else None,
        "precision": (hits / int(flagged.sum()) if flagged.any() else None) if both else None,
        "recall": hits / positives if positives else None,
        "fpr": int((flagged & ~truth).sum()) / negatives if negatives else None,
        "auprc": float(average_precision_score(truth, probability)) if both else None,
        "auroc": float(roc_auc_score(truth, probability)) if both else None,
        "recall_at_1pct_fpr": _recall_at(truth, probability, 0.01) if both else None,
        "ece": expected_calibration_error(truth, probability) if both else None,
        "threshold": threshold,
    }


def _recall_at(truth: np.ndarray, probability: np.ndarray, fpr: float) -> float:
    false_rates, true_rates, _ = roc_curve(truth, probability, drop_intermediate=False)
    return float(true_rates[false_rates <= fpr].max())


def expected_calibration_error(unsafe: np.ndarray, scores: np.ndarray, bins: int = 15) -> float:
    """Return the mean |share unsafe - mean score| over equal-width bins, weighted by their size; in [0, 1]."""
    index = np.minimum((scores * bins).astype(int), bins - 1)
    sizes = np.bincount(index, minlength=bins)
    gaps = np.abs(np.bincount(index, unsafe, bins) - np.bincount(index, scores, bins))  # already times the bin's size
    return float(gaps.sum() / sizes.sum())


def tagged_metrics(
    unsafe: Sequence[bool], scores: Sequence[float], tags: Sequence[Sequence[str] | None], threshold: float
) -> dict[str, Any]:
    """Return `binary_metrics` with a `tags` entry: the same metrics over the items that carry each tag."""
    result = binary_metrics(unsafe, scores, threshold)
    names = sorted({tag for row in tags for tag in row or ()})
    rows_of = {name: [i for i, row in enumerate(tags) if row and name in row] for name in names}
    result["tags"] = {
        name: binary_metrics([unsafe[i] for i in rows], [scores[i] for i in rows], threshold)
        for name, rows in rows_of.items()
    }
    return result


def share_text(value: float | None) -> str:
    """Return a share as people read it; "-" where there is none."""
    return "-" if value is None else f"{value:.3f}"

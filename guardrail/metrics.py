"""Figures about a classifier and about an attack, and their intervals."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

Labels = Sequence[bool] | np.ndarray
Scores = Sequence[float] | np.ndarray

_Z95 = 1.959963984540054
_FPR = 0.01  # of recall_at_1pct_fpr
_RESAMPLES = 1000
_RESAMPLED_AT_ONCE = 500_000  # scores; bounds the memory


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


def binary_metrics(
    unsafe: Labels, scores: Scores, threshold: float | None, flagged: Labels | None = None
) -> dict[str, Any]:
    """Return the metrics of one evaluation set as `evaluate.py` writes them.

    Args:
        unsafe: the true labels.
        scores: calibrated probabilities in [0, 1].
        threshold: the guard's own; never one tuned on this set. None for a service, which tells none: its scores are no
            calibrated probabilities either, and only rank.
        flagged: the decisions; None: scores from the threshold up.

    Returns:
        n, positives, f1, precision, recall, fpr, auprc, auroc, recall_at_1pct_fpr, ece, threshold; a metric that the
        set cannot define (only positives, only negatives) is None, and ece is None without a threshold.

    Raises:
        ValueError: neither a threshold nor decisions are given.
    """
    truth = np.asarray(unsafe, dtype=bool)
    probability = np.asarray(scores, dtype=float)
    decided = _decisions(probability, threshold, flagged)
    positives, negatives = int(truth.sum()), int((~truth).sum())
    hits = int((decided & truth).sum())
    both = positives > 0 and negatives > 0
    return {
        "n": len(truth),
        "positives": positives,
        "f1": 2 * hits / (positives + int(decided.sum())) if both else None,
        "precision": (hits / int(decided.sum()) if decided.any() else None) if both else None,
        "recall": hits / positives if positives else None,
        "fpr": int((decided & ~truth).sum()) / negatives if negatives else None,
        "auprc": float(average_precision_score(truth, probability)) if both else None,
        "auroc": float(roc_auc_score(truth, probability)) if both else None,
        "recall_at_1pct_fpr": _recall_at(truth, probability, _FPR) if both else None,
        "ece": expected_calibration_error(truth, probability) if both and threshold is not None else None,
        "threshold": threshold,
    }


def _decisions(scores: np.ndarray, threshold: float | None, flagged: Labels | None) -> np.ndarray:
    if flagged is not None:
        return np.asarray(flagged, dtype=bool)
    if threshold is None:
        raise ValueError("metrics need the guard's threshold or its decisions")
    return scores >= threshold


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
    unsafe: Labels,
    scores: Scores,
    tags: Sequence[Sequence[str] | None],
    threshold: float | None,
    flagged: Labels | None = None,
    *,
    seed: int | None = None,
) -> dict[str, Any]:
    """Return `binary_metrics` with a `tags` entry: the same metrics over the items that carry each tag.

    With a seed, each of them has `intervals`, too: `metric_intervals`.
    """
    truth, probability = np.asarray(unsafe, dtype=bool), np.asarray(scores, dtype=float)
    decided = _decisions(probability, threshold, flagged)

    def over(rows: Sequence[int]) -> dict[str, Any]:
        own = truth[rows], probability[rows], decided[rows]
        metrics = binary_metrics(own[0], own[1], threshold, own[2])
        return metrics if seed is None else {**metrics, "intervals": metric_intervals(*own, seed)}

    names = sorted({tag for row in tags for tag in row or ()})
    rows_of = {name: [i for i, row in enumerate(tags) if row and name in row] for name in names}
    return {**over(range(len(truth))), "tags": {name: over(rows) for name, rows in rows_of.items()}}


def share_text(value: float | None) -> str:
    """Return a share as people read it; "-" where there is none."""
    return "-" if value is None else f"{value:.3f}"


# --- Intervals ------------------------------------------------------------------------------------------------------


def metric_intervals(
    unsafe: np.ndarray, scores: np.ndarray, flagged: np.ndarray, seed: int
) -> dict[str, list[float] | None]:
    """Return the 95% intervals [low, high] of a set's metrics by name, None where the metric is.

    Shares (precision, recall, fpr) have Wilson intervals. f1, auprc, auroc and recall_at_1pct_fpr have percentile
    intervals of a bootstrap that draws as many unsafe and as many benign items as there are, extended to the metric
    itself where it is biased. A bootstrap knows only the items it has: where they are few, or none is misjudged, its
    intervals are too narrow, and Wilson's tell more.

    Source: B. Efron, R. Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13.

    Args:
        unsafe: the true labels, bool [n].
        scores: [n], whatever their scale.
        flagged: the decisions, bool [n].
        seed: of the bootstrap.
    """
    positives, negatives = int(unsafe.sum()), int((~unsafe).sum())
    hits, alarms = int((flagged & unsafe).sum()), int((flagged & ~unsafe).sum())
    both = positives > 0 and negatives > 0
    intervals: dict[str, list[float] | None] = {
        "f1": None,
        "precision": wilson(hits, hits + alarms) if both else None,
        "recall": wilson(hits, positives),
        "fpr": wilson(alarms, negatives),
        **dict.fromkeys(_RANKING),
    }
    if both:
        random = np.random.default_rng(seed)
        # Of items drawn anew, the number that is flagged is binomial.
        drawn_hits = random.binomial(positives, hits / positives, _RESAMPLES)
        drawn_alarms = random.binomial(negatives, alarms / negatives, _RESAMPLES)
        f1 = 2 * drawn_hits / (positives + drawn_hits + drawn_alarms)
        intervals["f1"] = _percentiles(f1, 2 * hits / (positives + hits + alarms))
        estimate, drawn = _resampled_ranking(unsafe, scores, random)
        for column, name in enumerate(_RANKING):
            intervals[name] = _percentiles(drawn[:, column], estimate[column])
    return intervals


_RANKING = ("auprc", "auroc", "recall_at_1pct_fpr")


def _percentiles(drawn: np.ndarray, estimate: float) -> list[float]:
    low, high = np.quantile(drawn, (0.025, 0.975))
    return [min(float(low), float(estimate)), max(float(high), float(estimate))]


def _resampled_ranking(
    unsafe: np.ndarray, scores: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the metrics of `_RANKING`, [3], and those of resampled sets, [_RESAMPLES, 3]."""
    distinct, ranks = np.unique(-scores, return_inverse=True)  # rank 0: the highest score
    of_each = ranks[unsafe], ranks[~unsafe]

    def counts(drawn: np.ndarray) -> np.ndarray:
        """Return how many items of each draw, a row of ranks, have each rank: [draws, ranks]."""
        cells = drawn + len(distinct) * np.arange(len(drawn))[:, None]
        return np.bincount(cells.ravel(), minlength=len(drawn) * len(distinct)).reshape(len(drawn), -1)

    batch = max(1, _RESAMPLED_AT_ONCE // len(scores))
    sizes = [min(batch, _RESAMPLES - done) for done in range(0, _RESAMPLES, batch)]
    drawn = [
        ranking_metrics(*(counts(own[random.integers(len(own), size=(size, len(own)))]) for own in of_each))
        for size in sizes
    ]
    return ranking_metrics(*(counts(own[None]) for own in of_each))[0], np.concatenate(drawn)


def ranking_metrics(unsafe: np.ndarray, benign: np.ndarray) -> np.ndarray:
    """Return the metrics of `_RANKING` of many sets at once, [sets, 3].

    Args:
        unsafe: how many unsafe items of a set have each of the distinct scores, the highest first, int [sets, scores].
        benign: the same of the benign ones.
    """
    hits, alarms = unsafe.cumsum(axis=1), benign.cumsum(axis=1)
    positives, negatives = hits[:, -1], alarms[:, -1]
    auprc = (unsafe * (hits / np.maximum(hits + alarms, 1))).sum(axis=1) / positives
    auroc = (benign * (hits - unsafe / 2)).sum(axis=1) / (positives * negatives)
    within = alarms / negatives[:, None] <= _FPR
    return np.stack([auprc, auroc, (hits * within).max(axis=1) / positives], axis=1)

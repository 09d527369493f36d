"""What a guard's validation split sets: temperature and thresholds, and what `guard.json` tells of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from guardrail.calibration import choose_threshold, fit_temperature, reliability
from guardrail.fitted_on import fitted_on
from guardrail.guard import Guard
from guardrail.guard_card import GuardCard, write_card
from guardrail.metrics import binary_metrics, expected_calibration_error, tagged_metrics
from guardrail.reading import reading_of
from guardrail.records import Record
from guardrail.seeds import families
from guardrail.taxonomy import CATEGORIES, UNSAFE
from guardrail.text import digest

_FEWEST_POSITIVES = 5  # of a category, for a threshold of its own


def calibrate(
    directory: Path,
    validation: Sequence[Record],
    *,
    version: str,
    window: int,
    max_fpr: float,
    training: dict[str, Any],
) -> GuardCard:
    """Set a guard's temperature and thresholds on the validation split, and write `guard.json`.

    `training` gets an entry `validation`: the metrics of the "unsafe" decision; under `calibration` the expected
    calibration error and the reliability bins `before` (temperature 1) and `after`, both on the split that the
    temperature was fitted on; under `categories` what `category_thresholds` says of each; `cross_fitted`.

    Args:
        directory: what `save_pretrained` wrote.
        validation: records of both labels that no weight was trained on.
        version, window: as in `GuardCard`.
        max_fpr: most of the benign records that "unsafe" may flag, and of the records without a category that this may.
        training: the manifest.

    Raises:
        FittedOnEvaluationSet: records name a registered evaluation set as their source.
        ValueError: all records are of one label.
    """
    source = fitted_on("validation split", [r["id"] for r in validation], [r["source"] for r in validation])
    write_card(directory, version=version, temperature=1.0, thresholds={UNSAFE: 0.5}, window=window)
    logits = Guard.from_pretrained(directory).logits([reading_of(r["text"], r["response"]) for r in validation])
    unsafe = np.array([r["unsafe"] for r in validation], dtype=bool)
    temperature = fit_temperature(logits[:, 0], unsafe)
    before, after = (1.0 / (1.0 + np.exp(-logits / divisor)) for divisor in (1.0, temperature))
    threshold = choose_threshold(after[:, 0], unsafe, max_fpr)
    of_categories = category_thresholds(after[:, 1:], [known_categories(r) for r in validation], max_fpr)
    told = {
        **binary_metrics(unsafe, after[:, 0], threshold),
        "max_fpr": max_fpr,
        "calibration": {
            name: {
                "temperature": divisor,
                "ece": expected_calibration_error(unsafe, scores[:, 0]),
                "bins": reliability(unsafe, scores[:, 0]),
            }
            for name, divisor, scores in (("before", 1.0, before), ("after", temperature, after))
        },
        "categories": of_categories,
        "cross_fitted": cross_fitted(validation, logits[:, 0], unsafe, threshold, max_fpr),
    }
    own = {key: each["threshold"] for key, each in of_categories.items() if each["threshold"] is not None}
    return write_card(
        directory,
        version=version,
        temperature=temperature,
        thresholds={UNSAFE: threshold, **own},
        window=window,
        training={**training, "validation": told},
        fitted_on=source,
    )


def cross_fitted(
    records: Sequence[Record], logits: np.ndarray, unsafe: np.ndarray, threshold: float, max_fpr: float
) -> dict[str, Any] | None:
    """Return the metrics of each half of the split by the temperature and the threshold that the other half sets.

    So no text is measured by what was fitted on it, on another that grew from its seed, or on another answer to its
    request. (An early stopping has seen both halves.) The tags are the sources, without topics.

    Args:
        records: n, of both labels.
        logits: of "unsafe", [n].
        unsafe: the labels, [n].
        threshold: of the guard: what `threshold` tells, and nothing else.
        max_fpr: as in `calibrate`.

    Returns:
        `tagged_metrics`; None where a half lacks a label.
    """
    first = np.array([int(digest(family), 16) % 2 == 0 for family in families(records)], dtype=bool)
    if any(len(set(unsafe[half])) < 2 for half in (first, ~first)):
        return None
    scores, flagged = np.empty(len(records)), np.empty(len(records), dtype=bool)
    for own in (first, ~first):
        probability = 1.0 / (1.0 + np.exp(-logits / fit_temperature(logits[~own], unsafe[~own])))
        scores[own] = probability[own]
        flagged[own] = probability[own] >= choose_threshold(probability[~own], unsafe[~own], max_fpr)
    tags = [[record["source"].partition(":")[0]] for record in records]
    return tagged_metrics(unsafe, scores, tags, threshold, flagged)


def known_categories(record: Record) -> list[str] | None:
    """Return the categories of a record, none of a benign one; None: unknown."""
    categories: list[str] | None = record["categories"] if record["unsafe"] else []
    return categories


def category_thresholds(
    probabilities: np.ndarray, categories: Sequence[Sequence[str] | None], max_fpr: float
) -> dict[str, dict[str, Any]]:
    """Return the threshold of each category, and what it was set on.

    Args:
        probabilities: calibrated, [records, categories].
        categories: of each record; those of unknown ones are left out.
        max_fpr: most of the records without a category that its threshold may flag.

    Returns:
        By category: `positives` and `negatives`, how many records have it and do not; `threshold`, and its `recall` and
        `fpr` on them. These three are None, and the threshold of "unsafe" stands in, where there are fewer than five
        positives, or too few negatives to tell the rate.
    """
    known = np.array([each is not None for each in categories], dtype=bool)
    found: dict[str, dict[str, Any]] = {}
    for column, key in enumerate(CATEGORIES):
        has = np.array([key in (each or ()) for each in categories], dtype=bool)[known]
        scores = probabilities[known, column]
        positives, negatives = int(has.sum()), int((~has).sum())
        threshold = recall = fpr = None
        if positives >= _FEWEST_POSITIVES and negatives * max_fpr >= 1:
            threshold = choose_threshold(scores, has, max_fpr)
            recall, fpr = (float((scores[own] >= threshold).mean()) for own in (has, ~has))
        found[key] = {
            "positives": positives,
            "negatives": negatives,
            "threshold": threshold,
            "recall": recall,
            "fpr": fpr,
        }
    return found

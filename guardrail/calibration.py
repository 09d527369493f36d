"""Temperature, thresholds and reliability, from a validation split that no weight was trained on."""

import numpy as np


def fit_temperature(logits: np.ndarray, unsafe: np.ndarray) -> float:
    """Return the temperature in [0.05, 20] that minimises the log loss of sigmoid(logit / temperature).

    Labels are as certain as so many can be: where a guard tells all of a split apart, the loss of plain ones falls
    without end, and every score would be 0 or 1.
    Sources: Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599; the targets are those of Platt,
    "Probabilistic Outputs for Support Vector Machines", 1999.
    """
    from scipy.optimize import minimize_scalar  # thresholds are set where guards are served, too, without scipy

    positives = int(unsafe.sum())
    target = np.where(unsafe, (positives + 1) / (positives + 2), 1 / (len(unsafe) - positives + 2))

    def log_loss(log_temperature: float) -> float:
        divided = logits / np.exp(log_temperature)
        return float((np.logaddexp(0.0, divided) - target * divided).mean())

    bounds = (np.log(0.05), np.log(20.0))
    return float(np.exp(minimize_scalar(log_loss, bounds=bounds, method="bounded").x))


def choose_threshold(probabilities: np.ndarray, unsafe: np.ndarray, max_fpr: float) -> float:
    """Return the lowest threshold that flags at most `max_fpr` of the benign: all the recall that this rate buys.

    Guards of all rounds have the same operating point so, and what is said of one can be compared with the others.

    Raises:
        ValueError: the split lacks one of the labels.
    """
    if unsafe.all() or not unsafe.any():
        raise ValueError("a validation split needs both safe and unsafe records to set a threshold")
    values = np.unique(probabilities)
    # Half-way between neighbouring scores: as far as can be from flipping on a rounding difference.
    # The last flags nothing, even where a score is 1.
    candidates = np.append((values[1:] + values[:-1]) / 2, np.nextafter((values[-1] + 1) / 2, 2))
    benign = np.sort(probabilities[~unsafe])
    flagged_benign = len(benign) - np.searchsorted(benign, candidates)
    return float(candidates[np.argmax(flagged_benign <= max_fpr * len(benign))])


def reliability(unsafe: np.ndarray, scores: np.ndarray, bins: int = 15) -> list[dict[str, float | int | None]]:
    """Return what a reliability diagram draws, for each of the equal-width bins of scores.

    A bin has its `count`, `mean_score` and `share_unsafe`; the latter two are None where it is empty.

    Args:
        unsafe: the true labels, bool [n].
        scores: probabilities in [0, 1], [n].
        bins: how many.
    """
    index = np.minimum((scores * bins).astype(int), bins - 1)
    members = [index == place for place in range(bins)]
    return [
        {
            "count": int(own.sum()),
            "mean_score": float(scores[own].mean()) if own.any() else None,
            "share_unsafe": float(unsafe[own].mean()) if own.any() else None,
        }
        for own in members
    ]

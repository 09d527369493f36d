"""Classifiers that must not have seen what they judge: each learns from all folds of the records but one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from guardrail.text import digest

FOLDS = 5
UNDERSTOOD = 0.7  #: least share of records whose label such classifiers find by themselves for their word to count


def folds_of(seed_ids: Sequence[str]) -> NDArray[np.int64]:
    """Return the fold of each seed, under `FOLDS`: nothing that grew from one seed is in two."""
    return np.array([int(digest(seed_id), 16) % FOLDS for seed_id in seed_ids], dtype=np.int64)


def learnable(labels: NDArray[np.bool_], folds: NDArray[np.int64]) -> bool:
    """Return whether every classifier would see both labels."""
    return all(len(np.unique(labels[folds != fold])) == 2 for fold in range(FOLDS))


def fitted_without(
    fold: int,
    features: Any,
    labels: NDArray[np.bool_],
    folds: NDArray[np.int64],
    *,
    strength: float,
    iterations: int,
) -> NDArray[np.float64]:
    """Return the weights of the features, and the bias, of a logistic regression that has not seen a fold [d + 1].

    Args:
        fold: that is left out.
        features: of the records, dense or sparse [n, d].
        labels: of the records [n].
        folds: of the records [n].
        strength: inverse regularisation.
        iterations: at most.
    """
    learned = np.flatnonzero(folds != fold)
    with threadpool_limits(1):  # several threads add in another order, which shows in the last digits
        model = LogisticRegression(C=strength, max_iter=iterations).fit(features[learned], labels[learned])
    return np.append(model.coef_[0], model.intercept_)

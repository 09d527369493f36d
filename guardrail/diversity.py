"""How different the texts of a set are from each other."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

SELF_BLEU_SAMPLE = 64  # texts; self-BLEU is quadratic in them
CLUSTER_SIMILARITY = 0.7  # cosine under MiniLM at which two texts are one idea


def self_bleu(texts: Sequence[str], seed: int = 0, said: Callable[[str], str] = str) -> float | None:
    """Return the mean BLEU of each text against all others, in [0, 1]; 1: all the same; None for fewer than two.

    Source: Zhu et al., "Texygen", arXiv 1802.01886. At most `SELF_BLEU_SAMPLE` texts, drawn with `seed`, are used, each
    as what it `said`.
    """
    from sacrebleu.metrics import BLEU

    if len(texts) < 2:
        return None
    if len(texts) > SELF_BLEU_SAMPLE:
        chosen = np.random.default_rng(seed).choice(len(texts), SELF_BLEU_SAMPLE, replace=False)
        texts = [texts[index] for index in sorted(chosen)]
    texts = [said(text) for text in texts]
    bleu = BLEU(effective_order=True)
    scores = [bleu.sentence_score(text, [*texts[:i], *texts[i + 1 :]]).score for i, text in enumerate(texts)]
    return float(np.mean(scores) / 100)


def unique_clusters(embeddings: np.ndarray, similarity: float = CLUSTER_SIMILARITY) -> int:
    """Return how many clusters greedy leader clustering finds among L2-normalised embeddings [n, d]."""
    leaders, count = np.empty_like(embeddings), 0
    for embedding in embeddings:
        if not count or float((leaders[:count] @ embedding).max()) < similarity:
            leaders[count] = embedding
            count += 1
    return count


def mean_distance(embeddings: np.ndarray) -> float | None:
    """Return the mean cosine distance over all pairs of L2-normalised embeddings [n, d]; None for fewer than two."""
    count = len(embeddings)
    if count < 2:
        return None
    total = float((embeddings.sum(axis=0) ** 2).sum()) - count  # sum of cosines over ordered pairs of two
    return 1.0 - total / (count * (count - 1))


def diversity(texts: Sequence[str], embeddings: np.ndarray, said: Callable[[str], str] = str) -> dict[str, Any]:
    """Return `self_bleu`, `unique_clusters` and `mean_distance` of a set of texts."""
    return {
        "self_bleu": self_bleu(texts, said=said),
        "unique_clusters": unique_clusters(embeddings),
        "mean_distance": mean_distance(embeddings),
    }

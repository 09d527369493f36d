"""The archive of successful attacks: what the adversary has found so far, and how new the next find is.

The records themselves are in the run's files (`rounds/NN/curated.parquet`); the archive keeps their embeddings.
"""

import numpy as np


class Archive:
    """Embeddings of past successes, the oldest forgotten past `size`."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.embeddings = np.zeros((0, 0), dtype=np.float32)

    def add(self, embeddings: np.ndarray) -> None:
        """Add L2-normalised embeddings [n, d]."""
        if len(embeddings):
            known = self.embeddings.reshape(-1, embeddings.shape[1])
            self.embeddings = np.concatenate([known, embeddings])[-self.size :]

"""Sentence embeddings: one vector per text, close for texts that mean the same."""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from guardrail.guard import token_batches
from guardrail.models import resolve

_WINDOW = 256  # tokens; what lies past them does not count
_TOKENS_PER_BATCH = 4096


class Embedder:
    """A sentence encoder with mean pooling (Sentence-BERT, arXiv 1908.10084), on plain transformers.

    Args:
        model: directory or hub id of an encoder.
    """

    def __init__(self, model: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.model = AutoModel.from_pretrained(model, dtype=torch.float32).eval()

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return L2-normalised embeddings, float32 [len(texts), d]."""
        result = np.zeros((len(texts), self.model.config.hidden_size), dtype=np.float32)
        if not texts:
            return result
        encoded = self.tokenizer(list(texts), truncation=True, max_length=_WINDOW)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        order = sorted(range(len(texts)), key=lambda index: lengths[index])
        for batch in token_batches(order, lengths, _TOKENS_PER_BATCH):
            padded = self.tokenizer.pad({"input_ids": [encoded["input_ids"][i] for i in batch]}, return_tensors="pt")
            hidden = self.model(**padded).last_hidden_state
            mask = padded["attention_mask"][:, :, None]
            mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
            result[batch] = torch.nn.functional.normalize(mean, dim=1).numpy()
        return result


@functools.lru_cache(maxsize=1)  # once in each worker process
def loaded_embedder(name: str) -> Embedder:
    """Return the encoder of this name, as `guardrail.models.resolve` takes it."""
    return Embedder(resolve(name))

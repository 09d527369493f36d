"""Sentence embeddings: one vector per text, close for texts that mean the same."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from guardrail.guard import token_batches
from guardrail.models import resolve
from guardrail.static_embedding import StaticEncoder

STATIC_PREFIX = "static:"

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


@dataclass(frozen=True)
class SharedEmbedder:
    """A sentence encoder that goes to other processes as its name; each of them loads it once.

    Args:
        name: as `guardrail.models.resolve` takes it.
    """

    name: str

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return L2-normalised embeddings, float32 [len(texts), d]; their last bits hang on the texts beside them."""
        return loaded_embedder(self.name).encode(texts)


@functools.lru_cache(maxsize=2)
def loaded_embedder(name: str) -> Embedder:
    """Return the encoder of this name, loaded once in each process."""
    return Embedder(resolve(name))


def shared_encoder(name: str) -> StaticEncoder | SharedEmbedder:
    """Return an encoder that can be sent to workers.

    Args:
        name: of an encoder, as `guardrail.models.resolve` takes it; after "static:", only its token vectors are used.

    Raises:
        ValueError: no such static encoder.
    """
    if name.startswith(STATIC_PREFIX):
        return StaticEncoder.distilled(name.removeprefix(STATIC_PREFIX))
    return SharedEmbedder(name)

"""Sentence embeddings: one vector per text, close for texts that mean the same."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from guardrail.batching import token_batches
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

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return L2-normalised embeddings, float32 [len(texts), d]."""
        return _pooled(self.tokenizer, self.model, texts, _direction)


class MiddleLayer:
    """What an encoder's middle layer makes of texts.

    The upper layers of a sentence encoder are trained to tell what a text is about; whether it asks for harm shows
    better halfway, and costs half. (An encoder that normalises its last layer's states does so with these.)

    Args:
        model: directory or hub id of an encoder.
    """

    def __init__(self, model: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        layers = AutoConfig.from_pretrained(model).num_hidden_layers
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # it reports the layers above as unexpected
        try:
            self.model = AutoModel.from_pretrained(
                model, dtype=torch.float32, num_hidden_layers=max(1, layers // 2)
            ).eval()
        finally:
            logging.set_verbosity(verbosity)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return mean and largest value of each text's states, float32 [len(texts), 2 d]."""
        return _pooled(self.tokenizer, self.model, texts, _mean_and_largest)


@torch.inference_mode()
def _pooled(
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    texts: Sequence[str],
    pool: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> np.ndarray:
    """Return what `pool` makes of hidden states [batch, tokens, d] and mask [batch, tokens, 1], for each text."""
    encoded = tokenizer(list(texts) or [""], truncation=True, max_length=_WINDOW)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    vectors: list[Any] = [None] * len(lengths)
    for batch in token_batches(order, lengths, _TOKENS_PER_BATCH):
        padded = tokenizer.pad({"input_ids": [encoded["input_ids"][i] for i in batch]}, return_tensors="pt")
        pooled = pool(model(**padded).last_hidden_state, padded["attention_mask"][:, :, None])
        for place, vector in zip(batch, pooled.numpy(), strict=True):
            vectors[place] = vector
    return np.stack(vectors)[: len(texts)]


def _direction(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=1)


def _mean_and_largest(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
    return torch.cat([mean, hidden.masked_fill(mask == 0, -torch.inf).amax(dim=1)], dim=1)


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


@functools.lru_cache(maxsize=2)
def loaded_middle_layer(name: str) -> MiddleLayer:
    """Return the middle layer of the encoder of this name, loaded once in each process."""
    return MiddleLayer(resolve(name))


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

"""The scorer: the guard under attack, the sentence encoder and the frozen reference, in one actor."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from guardrail.embedding import Embedder
from guardrail.guard import Guard, token_batches
from guardrail.models import resolve

_TOKENS_PER_BATCH = 1024
_LEAST_LIKELY = 5  # the least likely one in so many tokens counts


@dataclasses.dataclass(frozen=True)
class Scores:
    """What the scorer measured of n texts: guard's P(unsafe) [n], fluency [n], L2-normalised embeddings [n, d]."""

    unsafe: np.ndarray
    fluency: np.ndarray
    embeddings: np.ndarray


class Scorer:
    """An actor that scores texts for reward and gate; the guard can be exchanged, the rest stays.

    Args:
        embedder: bundled name, directory or hub id of the sentence encoder.
        reference: bundled name, directory or hub id of the causal model that judges fluency.
    """

    def __init__(self, embedder: str, reference: str) -> None:
        torch.set_num_threads(os.cpu_count() or 1)  # scoring, generation and update take turns on a machine
        self.embedder = Embedder(resolve(embedder))
        reference = resolve(reference)
        self.tokenizer = AutoTokenizer.from_pretrained(reference)
        self.reference = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32).eval()
        self.guard: Guard | None = None

    def __repr__(self) -> str:
        return "scorer"

    def set_guard(self, directory: str) -> float:
        """Load the guard to attack and return its threshold of "unsafe"."""
        self.guard = Guard.from_pretrained(Path(directory))
        return self.guard.card.thresholds["unsafe"]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return L2-normalised embeddings [n, d]."""
        return self.embedder.encode(list(texts))

    def score(self, texts: Sequence[str]) -> Scores:
        """Return the scores of texts; of an empty text, fluency is -inf."""
        assert self.guard is not None, "set_guard comes first"
        probabilities = self.guard.probabilities(texts)[:, 0]
        return Scores(probabilities, self.fluency(texts), self.embedder.encode(list(texts)))

    @torch.inference_mode()
    def fluency(self, texts: Sequence[str]) -> np.ndarray:
        """Return Min-K: the mean log-probability of each text's least likely fifth of tokens, [n].

        Source: Shi et al., "Detecting Pretraining Data from Large Language Models", arXiv 2310.16789, used here as a
        floor on fluency: gibberish has tokens that nothing before them led to.
        """
        result = np.full(len(texts), -np.inf)
        # The end-of-text token is what a document starts after: it gives the first word a probability as well.
        ids = [[self.tokenizer.eos_token_id, *self.tokenizer(text)["input_ids"]] for text in texts]
        lengths = [len(row) for row in ids]
        order = sorted((i for i in range(len(ids)) if lengths[i] > 1), key=lambda i: lengths[i])
        for batch in token_batches(order, lengths, _TOKENS_PER_BATCH):
            padded = self.tokenizer.pad(
                {"input_ids": [ids[i] for i in batch]}, padding_side="right", return_tensors="pt"
            )
            logits = self.reference(**padded).logits[:, :-1]
            chosen = torch.log_softmax(logits, dim=-1).gather(-1, padded["input_ids"][:, 1:, None]).squeeze(-1)
            for row, index in enumerate(batch):
                values = chosen[row, : lengths[index] - 1].sort().values
                result[index] = values[: max(1, len(values) // _LEAST_LIKELY)].mean().item()
        return result

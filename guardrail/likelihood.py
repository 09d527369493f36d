"""How likely a causal language model finds the tokens of texts."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

from guardrail.batching import token_batches
from guardrail.models import resolve

_TOKENS_PER_BATCH = 1024


class LanguageModel:
    """A causal language model.

    Args:
        model: bundled name, directory or hub id.
    """

    def __init__(self, model: str) -> None:
        source = resolve(model)
        self.tokenizer = AutoTokenizer.from_pretrained(source)
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self.model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()

    @torch.inference_mode()
    def log_probabilities(self, texts: Sequence[str], start: int) -> list[NDArray[np.float32]]:
        """Return the log-probability of each token of each text, [tokens] of each.

        Args:
            texts: any.
            start: token that each begins after; it gives the first word a probability as well.
        """
        ids = [[start, *self.tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts]
        lengths = [len(row) for row in ids]
        found = [np.empty(0, dtype=np.float32)] * len(ids)
        order = sorted((i for i in range(len(ids)) if lengths[i] > 1), key=lambda i: lengths[i])
        for batch in token_batches(order, lengths, _TOKENS_PER_BATCH):
            padded = self.tokenizer.pad(
                {"input_ids": [ids[i] for i in batch]}, padding_side="right", return_tensors="pt"
            )
            logits = self.model(**padded).logits[:, :-1]
            chosen = torch.log_softmax(logits, dim=-1).gather(-1, padded["input_ids"][:, 1:, None]).squeeze(-1)
            for row, index in enumerate(batch):
                found[index] = chosen[row, : lengths[index] - 1].numpy()
        return found

"""Whether the words of a text are in an order, by a causal language model."""

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from guardrail.gibberish import LOOKED_AT, without_addresses
from guardrail.likelihood import LanguageModel

_CLEAR = 3.0  # nats a token: of 300 texts, two orders of the words of 99% differed by less than 2.7


class WordOrder:
    """A causal language model that compares texts with their own words in another order.

    Comparing a text with itself needs no threshold for each model, length and subject, as a likelihood alone would.

    Args:
        model: bundled name, directory or hub id.
    """

    def __init__(self, model: str) -> None:
        self.model = LanguageModel(model)

    def gains(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return by how much each text is likelier than its words, shuffled in two ways, in nats a token [texts].

        About 0 for words in no order; nearly all requests in English lie over 1. The likelier of the two orders counts;
        the second is only looked at where the first leaves a doubt.
        """
        # Capitals are other tokens, of which models know little.
        plain = (text.lower() if text.isupper() else text for text in texts)
        shown = [without_addresses(text[:LOOKED_AT]).split() for text in plain]
        own, counts = self._log_probabilities(shown)
        in_doubt = np.arange(len(shown))
        likeliest = np.full(len(shown), -np.inf)
        for seed in (1, 2):
            other, _ = self._log_probabilities([_shuffled(shown[i], seed) for i in in_doubt])
            likeliest[in_doubt] = np.maximum(likeliest[in_doubt], other)
            gains = (own - likeliest) / np.maximum(counts, 1)
            in_doubt = np.flatnonzero(gains < _CLEAR)
        return gains

    def _log_probabilities(self, texts: Sequence[Sequence[str]]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the log probability and number of tokens of each text, given as its words, [texts] both."""
        start = self.model.tokenizer.eos_token_id  # what a document starts after
        found = self.model.log_probabilities([" ".join(words) for words in texts], start)
        return np.array([values.sum() for values in found], dtype=float), np.array([len(values) for values in found])


def _shuffled(words: Sequence[str], seed: int) -> list[str]:
    return random.Random(seed).sample(words, len(words))

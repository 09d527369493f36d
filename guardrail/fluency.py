"""How likely a text is under a reference: whether its letters make words, and its words a text.

Letters are held against the trigrams of `guardrail.english`, which cost microseconds and know English only. Words are
held against a causal language model, which costs milliseconds a token.
"""

import math
import random
import re
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

from guardrail.english import backwards, bare_words, english, fluency
from guardrail.guard import token_batches
from guardrail.models import resolve
from guardrail.text import canonical

_TOKENS_PER_BATCH = 1024
_LOOKED_AT = 1000  # characters
_ADDRESS = re.compile(r"https?://\S+|www\.\S+|[@#]\w+|&#?\w+;")
# What has a digit or a sign of code in it may be a name, a number, code or leet.
_NO_PLAIN_WORD = re.compile(r"\S*[\d@$_/\\=+<>{}|~^*#&]\S*")
_WORD = re.compile(r"[^\W\d_]+")
_SHORT = 3  # letters: words of fewer are words in any order
_FEWEST_LETTERS = 10
_FEWEST_COMMON = 3  # words that tell an order
_IN_ORDER = 8.0  # nats
_SHUFFLES = (1, 2)


def without_addresses(text: str) -> str:
    """Return the text without what is spelt as no language is: web addresses, mentions, tags, HTML entities."""
    return _ADDRESS.sub(" ", text)


def spelling(text: str) -> float | None:
    """Return how likely the characters in the words of a text are, in nats each; English lies about -2.

    It is the mean log probability and twice the error that a mean of so few would have at a deviation of one, so that
    short texts are in less danger of being called gibberish. Keyboard mash, random letters and shuffled ones lie under
    -3.5; so do ciphers, and other languages in these letters.

    None where too little can be told: under ten letters in words of three or more, or one such word, or another
    alphabet, digits and signs in most of the text.
    """
    plain = without_addresses(canonical(text[:_LOOKED_AT]))
    words = [word for word in _WORD.findall(_NO_PLAIN_WORD.sub(" ", plain)) if word.isascii()]
    told = [word for word in words if len(word) >= _SHORT]
    letters = sum(map(len, told))
    if len(told) < 2 or letters < _FEWEST_LETTERS or 2 * sum(map(len, words)) < len("".join(plain.split())):
        return None
    return fluency(" ".join(told)) + 2 / math.sqrt(letters)


def may_be_disordered(text: str) -> bool:
    """Whether common English words stand in a text in an order that is not clearly theirs, as in a third of requests.

    False where there are too few of them to tell. It costs nothing beside `WordOrder`, and misses one disordered text
    in ten.
    """
    plain = canonical(text[:_LOOKED_AT])
    common = sum(word in english().common for word in bare_words(plain))
    return common >= _FEWEST_COMMON and -backwards(plain) < _IN_ORDER


class WordOrder:
    """A causal language model that compares texts with their own words in another order.

    Comparing a text with itself needs no threshold for each model, length and subject, as a likelihood alone would.

    Args:
        model: bundled name, directory or hub id.
    """

    def __init__(self, model: str) -> None:
        source = resolve(model)
        self.tokenizer = AutoTokenizer.from_pretrained(source)
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self.model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()

    def gains(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return by how much each text is likelier than its words, shuffled in two ways, in nats a token [texts].

        About 0 for words in no order; nearly all requests in English lie over 1. The likelier of the two orders counts.
        """
        shown = [without_addresses(text[:_LOOKED_AT]).split() for text in texts]
        orders = [shown, *([_shuffled(words, seed) for words in shown] for seed in _SHUFFLES)]
        (own, counts), *others = (self._log_probabilities([" ".join(words) for words in order]) for order in orders)
        return (own - np.max([other for other, _ in others], axis=0)) / np.maximum(counts, 1)

    @torch.inference_mode()
    def _log_probabilities(self, texts: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return each text's log probability and number of tokens, [texts] both."""
        # The end-of-text token is what a document starts after: it gives the first word a probability as well.
        start = self.tokenizer.eos_token_id
        ids = [[start, *self.tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts]
        lengths = [len(row) for row in ids]
        result = np.zeros(len(texts))
        for batch in token_batches(sorted(range(len(ids)), key=lambda i: lengths[i]), lengths, _TOKENS_PER_BATCH):
            padded = self.tokenizer.pad(
                {"input_ids": [ids[i] for i in batch]}, padding_side="right", return_tensors="pt"
            )
            logits = self.model(**padded).logits[:, :-1]
            chosen = torch.log_softmax(logits, dim=-1).gather(-1, padded["input_ids"][:, 1:, None]).squeeze(-1)
            result[batch] = (chosen * padded["attention_mask"][:, 1:]).sum(dim=1).numpy()
        return result, np.array(lengths, dtype=np.int64) - 1


def _shuffled(words: Sequence[str], seed: int) -> list[str]:
    return random.Random(seed).sample(words, len(words))

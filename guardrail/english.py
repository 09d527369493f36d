"""How much a text looks like English: the evidence by which a decoding is told from what was written.

Everything is counted once, on the English seeds that rayguard ships: the words, which symbols follow which, and in what
order common words stand.
"""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guardrail.seeds import embedded_seeds
from guardrail.text import canonical

_EDGES = ".,;:!?\"'`()[]{}<>*…“”‘’«»-"  # punctuation around a word
_ENDS = (".", "?", "!")
#: Symbols: the letters a to z in either case, white space, punctuation, a digit, anything else.
LETTERS, _SPACE, _MARK, _DIGIT, _OTHER, _SYMBOLS = 26, 26, 27, 28, 29, 30
# The seeds hold too few of these to tell: digits and marks in a row, characters of other scripts.
_SELDOM, _FOREIGN = -5.0, -8.0
_LOOKED_AT = 400  # characters that tell the language of a text
_LONGEST_WORD = 40  # characters of what is remembered
_UNKNOWN = -10.0  # log probability of a word that is not among the seeds', less two for each letter


@dataclass(frozen=True)
class English:
    """What was counted.

    `words`: how often each word occurs; `total` is their sum. `common`: the most frequent ones. `trigrams`: natural
    logarithm of the probability of a symbol after two others, at the place `places` says. `order`: for two words the
    log odds that they stand in this order, "" being the edge of a sentence and "*" a word that is not common.
    """

    words: Counter[str]
    total: int
    common: frozenset[str]
    trigrams: NDArray[np.float64]
    order: dict[tuple[str, str], float]


@functools.cache
def english() -> English:
    """Return the model (the first call takes a third of a second)."""
    texts = [canonical(record["text"]) for record in embedded_seeds() if record["language"] == "en"]
    words = Counter(word for text in texts for word in bare_words(text))
    common = frozenset(word for word, _ in words.most_common(400))
    counts = np.full((_SYMBOLS,) * 3, 0.02)
    pairs: Counter[tuple[str, str]] = Counter()
    for text in texts:
        codes = symbols(f" {text} ")
        np.add.at(counts, (codes[:-2], codes[1:-1], codes[2:]), 1)
        listed = _common_words(text, common)
        pairs.update(itertools.pairwise(listed))
    trigrams = np.log(counts / counts.sum(2, keepdims=True))
    trigrams[:, :, _DIGIT] = trigrams[:, _MARK, _MARK] = _SELDOM
    trigrams[:, :, _OTHER] = _FOREIGN
    order = {(a, b): math.log((pairs[a, b] + 1) / (pairs[b, a] + 1)) for a, b in pairs}
    order |= {(b, a): -odds for (a, b), odds in order.items()}
    return English(words, words.total(), common, trigrams.ravel(), order)


def bare_words(text: str) -> list[str]:
    """Return what stands between white space, without the punctuation around it."""
    return [word for each in text.split() if (word := each.strip(_EDGES))]


def known_share(listed: Sequence[str]) -> float:
    """Return the share of the letters of lower-case words that belong to words of the seeds, 0 to 1."""
    known = english().words
    total = sum(map(len, listed))
    return sum(map(len, filter(known.__contains__, listed))) / total if total else 0.0


def rarity(word: str) -> float:
    """Return how much a lower-case word says: the negative logarithm of its frequency."""
    model = english()
    return math.log(model.total / (model.words[word] + 1))


def fluency(text: str) -> float:
    """Return the mean log probability of a text's symbols, in nats: English -3 to -1.6, ciphers below -3.8.

    No text is as little fluent as one in another script.
    """
    codes = symbols(f" {text[:_LOOKED_AT]} ")
    return float(english().trigrams[places(codes)].mean()) if text else _FOREIGN


def places(codes: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the places in `English.trigrams` of each three symbols [..., n] in a row [..., n - 2]."""
    return (codes[..., :-2] * _SYMBOLS + codes[..., 1:-1]) * _SYMBOLS + codes[..., 2:]


def symbols(text: str) -> NDArray[np.int32]:
    """Return a text's characters as the numbers of their symbols."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    return _SYMBOL[np.minimum(points, len(_SYMBOL) - 1)]


def _symbol(char: str) -> int:
    if not char.isascii():
        return _OTHER
    if char.isalpha():
        return ord(char.lower()) - ord("a")
    return _SPACE if char.isspace() else _DIGIT if char.isdigit() else _MARK


_SYMBOL = np.array([_symbol(chr(code)) for code in range(129)], dtype=np.int32)


def backwards(text: str) -> float:
    """Return the log odds, in nats, that the words of a canonical text stand in reverse."""
    model = english()
    listed = _common_words(text, model.common)
    return -sum([model.order.get(pair, 0.0) for pair in itertools.pairwise(listed)])


def _common_words(text: str, common: frozenset[str]) -> list[str]:
    listed = [""]
    for each in text.split():
        word, ends = (_bare if len(each) <= _LONGEST_WORD else _bare.__wrapped__)(each)
        listed.append(word if word in common else "*")
        if ends:
            listed.append("")
    return listed if listed[-1] == "" else [*listed, ""]


@functools.lru_cache(maxsize=2**16)
def _bare(written: str) -> tuple[str, bool]:
    """Return a word without what surrounds it, and whether a sentence ends with it."""
    return written.strip(_EDGES).partition("'")[0], written.endswith(_ENDS)  # "what's" stands where "what" does


def segmented(letters: str) -> str:
    """Return letters with spaces between the likeliest words (Viterbi over single words' frequencies)."""
    model, longest = english(), 20
    best = [(0.0, 0)]  # for each end: log probability, and where the last word starts
    for end in range(1, len(letters) + 1):
        options = []
        for start in range(max(0, end - longest), end):
            count = model.words[letters[start:end].lower()]
            cost = math.log(count / model.total) if count else _UNKNOWN - 2 * (end - start)
            options.append((best[start][0] + cost, start))
        best.append(max(options))
    found, end = [], len(letters)
    while end:
        start = best[end][1]
        found.append(letters[start:end])
        end = start
    return " ".join(reversed(found))

"""English with many words misspelt, so that a model does not know them, and what it says.

This is no decoder (`guardrail.decoders`): it competes with no reading of a disguise, it is made of the one that won.
"""

import functools
import itertools
import re
from typing import TYPE_CHECKING

from guardrail.english import bare_words, english, known_share

if TYPE_CHECKING:
    from spellchecker import SpellChecker

_LOOKED_AT = 50_000  # characters
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_CUT = re.compile(r"\w[^\w\s'’/-]+\w")  # a word with marks in it, which are of another kind
_SHORT = 3  # letters of the words that tell English: most of them are left as they are
_LENGTHS = range(3, 21)  # letters of words that are mended: of shorter ones all neighbours are words
_FEWEST = 3  # words that are misspelt
_MISSPELT = 0.25  # share of the words that are: more than those who type badly misspell
_ENGLISH = 0.3  # share of the short words that are common ones: words of other languages have neighbours, too
_KNOWN = 0.9  # share of the words that are known once they are mended


def mended(text: str) -> str | None:
    """Return what an English text says with its misspelt words mended; None unless there are many, and most can be.

    Letters were swapped, dropped, added or changed, one in a word. Capitals are lost, and what comes after 50,000
    characters stays.
    """
    said = text[:_LOOKED_AT].casefold()
    own = bare_words(said)
    if known_share(own) > 1 - _MISSPELT / 2 or len(_CUT.findall(said)) > len(own) * _MISSPELT:
        return None
    words = _WORD.findall(said)
    long = [word for word in words if len(word) >= _LENGTHS.start]
    short = [word for word in words if len(word) <= _SHORT]
    if sum(word in english().common for word in short) < max(1, _ENGLISH * len(short)):
        return None
    wrong = set(long) - _known_words()
    if len(wrong) < max(_FEWEST, _MISSPELT * len(long)):
        return None
    right: dict[str, str] = {}
    unknown, most = 0, (1 - _KNOWN) * len(long)
    for word in itertools.filterfalse(_known_words().__contains__, long):
        if neighbour := right.get(word) or _neighbour(word):
            right[word] = neighbour
        else:
            unknown += 1
            if unknown > most:
                return None
    return _WORD.sub(lambda word: right.get(word[0], word[0]), said) + text[_LOOKED_AT:]


@functools.cache
def _speller() -> "SpellChecker":
    from spellchecker import SpellChecker  # a tenth of a second, for texts that need it

    return SpellChecker(language="en", distance=1)


@functools.cache
def _known_words() -> frozenset[str]:
    return frozenset(english().words).union(_speller().word_frequency.keys())


@functools.lru_cache(maxsize=1 << 14)
def _neighbour(word: str) -> str | None:
    """Return the most frequent known neighbour, of those with the same letters first, then of those with one more."""
    if not word.isascii() or len(word) not in _LENGTHS:
        return None
    letters = sorted(word)

    def likely(other: str) -> tuple[bool, bool, float]:
        return sorted(other) == letters, len(other) > len(word), _speller().word_usage_frequency(other)

    return max((_speller().candidates(word) or set()) - {word}, key=likely, default=None)

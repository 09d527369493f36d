"""Words that were misspelt on purpose: where letters of many are swapped, dropped or added."""

import functools
import itertools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from guardrail.decoders.view import View
from guardrail.english import english

if TYPE_CHECKING:
    from spellchecker import SpellChecker

_WORD = re.compile(r"[^\W\d_]+")
_CUT = re.compile(r"\w[^\w\s'’/-]+\w")  # a word with marks in it: `characters.separated` mends these
_LOOKED_UP = 3  # letters of a word that may be misspelt
_SHORT = 3  # letters of the words that tell English; most of them are left as they are
_MISSPELT = 0.25  # share of the words: more than those who type badly misspell
_ENGLISH = 0.3  # share of the short words that are common ones: words of other languages have neighbours, too
_KNOWN = 0.85  # share of the words that are known ones once these are mended
_MOST = 200  # words that are mended


@functools.cache
def _speller() -> "SpellChecker":
    from spellchecker import SpellChecker  # a tenth of a second, for texts that need it

    return SpellChecker(language="en", distance=1)


def _mended(word: str) -> str | None:
    """Return the most frequent known neighbour, of those with the same letters first, then of those with one more."""
    speller = _speller()
    letters = sorted(word)

    def likely(other: str) -> tuple[bool, bool, float]:
        return sorted(other) == letters, len(other) > len(word), speller.word_usage_frequency(other)

    return max(speller.candidates(word) or (), key=likely, default=None)


def misspelt(view: View) -> Iterator[str]:
    """Yield an English text with the misspelt words mended, where there are many."""
    if view.known > 1 - _MISSPELT / 2 or len(_CUT.findall(view.surface)) > len(view.words) * _MISSPELT:
        return
    text = view.surface.casefold()
    words = _WORD.findall(text)
    long = [word for word in words if len(word) >= _LOOKED_UP]
    short = [word for word in words if len(word) <= _SHORT]
    if len(long) < 2 or sum(word in english().common for word in short) < _ENGLISH * len(short):
        return
    wrong = dict.fromkeys(word for word in long if word.isascii() and word not in _speller())
    if len(wrong) < 2 or sum(word in wrong for word in long) < _MISSPELT * len(long):
        return
    mended = {word: right for word in itertools.islice(wrong, _MOST) if (right := _mended(word))}
    if sum(mended.get(word, word) in _speller() for word in long) >= _KNOWN * len(long):
        yield _WORD.sub(lambda word: mended.get(word[0], word[0]), text)

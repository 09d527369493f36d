"""Runs of words that texts share, typing errors included.

What stands for a word is its first and last letter, which a swapped or dropped letter leaves alone. Four such words in
a row are one 64-bit hash, the same in either direction; what the hashes propose is compared word by word. Texts are
known in pig latin too: to undo it one must know what to look for.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from guardrail.curation.facts import ranges
from guardrail.decoders.characters import latin, letters_for_digits
from guardrail.decoders.ciphers import pig_latin
from guardrail.english import rarity
from guardrail.text import UNSPACED

SHORTEST = 3  # words: two in a row stand in texts that have nothing to do with one another
_SEED = 4  # words of a hash, and three where a text or run has no more
_MOST = 0.85  # of a text, each word counted by its rarity
# Characters of a script without spaces that count as a word: about as many as a translation into Japanese has for each,
# into Chinese fewer, into Thai more. A run of eight words is 20: the polite endings that requests share are shorter.
_OF_A_WORD = 2.5
_OF_ANOTHER = 6  # times as long may be a text that holds a short one: a sentence before or behind it hides nothing
_NO_WORDS = re.compile(r"[^\w\s]|_")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def loose_words(text: str) -> list[str]:
    """Return a text's words without case, marks and punctuation, the latter within words too, and digits as in leet.

    A character of a script without spaces is a word.
    """
    return letters_for_digits(UNSPACED.sub(r" \g<0> ", _NO_WORDS.sub("", latin(text).casefold()))).split()


class Shared(NamedTuple):
    """The words that a text has in common with indexed text `number`."""

    number: int
    words: str


class RunIndex:
    """Texts by the words that stand in a row in them.

    Args:
        texts: what others are looked up in.
        run: so many words in a row, `SHORTEST` at least, are shared by more than chance; of scripts without spaces, 2.5
            times as many characters. Shorter texts, from `SHORTEST` on, count whole, and only where they are a sixth of
            the other: "I understand how you feel" may stand in any.
    """

    def __init__(self, texts: Sequence[str], run: int) -> None:
        self._run, self._seed = run, min(_SEED, run)
        # Each text has two ways: 2 * number, as it is, and 2 * number + 1, in pig latin.
        self._ways = [" ".join(loose_words(way)) for text in texts for way in (text, pig_latin(latin(text)))]
        hashes, ways, places, least = [np.empty(0, np.uint64)], [], [], []
        for way, listed in enumerate(map(str.split, self._ways)):
            found = _hashes(_codes(listed), min(self._seed, len(listed))) if len(listed) >= SHORTEST else hashes[0]
            hashes.append(found)
            ways.append(np.full(len(found), way, np.int32))
            places.append(np.arange(len(found), dtype=np.int32))
            least.append(max(1, min(run - self._seed + 1, (len(listed) - SHORTEST) // 3)))
        joined = np.concatenate(hashes)
        order = np.argsort(joined, kind="stable")
        self._hashes = joined[order]
        self._way = np.concatenate([np.empty(0, np.int32), *ways])[order]
        self._place = np.concatenate([np.empty(0, np.int32), *places])[order]
        self._least = np.array(least, np.int32)  # hashes that a way must share to be worth a comparison

    def shared(self, listed: list[str]) -> Shared | None:
        """Return what loose words share with an indexed text: a run, or nearly all its words; None if with no text."""
        if len(listed) < SHORTEST or not len(self._hashes):
            return None
        codes = _codes(listed)
        runs = [_hashes(codes, length) for length in (SHORTEST, _SEED)]
        wanted, places = np.concatenate(runs), np.concatenate([np.arange(len(each)) for each in runs])
        start = np.searchsorted(self._hashes, wanted)
        known = np.flatnonzero(self._hashes[np.minimum(start, len(self._hashes) - 1)] == wanted)
        if not len(known):
            return None
        # One place for each hash: a text that repeats itself says nothing more.
        wanted, first = np.unique(wanted[known], return_index=True)
        start = start[known][first]
        count = np.searchsorted(self._hashes, wanted, side="right") - start
        entries = ranges(start, count)
        places = np.repeat(places[known][first], count)
        ways, hits = np.unique(self._way[entries], return_counts=True)
        for way in ways[hits >= self._least[ways]].tolist():
            of_way = self._way[entries] == way
            seeds = list(zip(self._place[entries[of_way]].tolist(), places[of_way].tolist(), strict=True))
            if shared := self._compared(way, listed, seeds):
                return shared
        return None

    def _compared(self, way: int, listed: list[str], seeds: list[tuple[int, int]]) -> Shared | None:
        known = self._ways[way].split()
        length = min(self._seed, len(known))
        fewest = _size(listed) / _OF_ANOTHER if _size(known) < self._run else 0
        mirrored = [(len(known) - length - place, at) for place, at in seeds]
        for words, pairs in ((known, seeds), (known[::-1], mirrored)):
            matched: set[int] = set()
            compared: set[tuple[int, int]] = set()  # place and how far it is shifted
            for place, at in sorted(pairs):
                if (place, at - place) not in compared:
                    start, end = _extent(words, listed, place, at)
                    matched.update(range(start, end))
                    compared.update((each, at - place) for each in range(start, end))
                    if _size(words[start:end]) >= self._run:
                        return Shared(way // 2, " ".join(words[start:end]))
            shared = [words[place] for place in sorted(matched)]
            if _size(shared) >= fewest and sum(map(rarity, shared)) >= _MOST * sum(map(rarity, words)):
                return Shared(way // 2, " ".join(shared))
        return None


def _size(listed: Sequence[str]) -> float:
    """Return how many words loose words are, where a character of a script without spaces is but a part of one."""
    characters = sum(map(bool, map(UNSPACED.match, listed)))
    return len(listed) - characters + characters / _OF_A_WORD


def _extent(words: Sequence[str], listed: Sequence[str], place: int, at: int) -> tuple[int, int]:
    """Return where the run of words starts and ends that is the same around `words[place]` and `listed[at]`."""
    start, end, shift = place, place, at - place
    while end < len(words) and end + shift < len(listed) and _same(words[end], listed[end + shift]):
        end += 1
    while end > place and start > max(0, -shift) and _same(words[start - 1], listed[start - 1 + shift]):
        start -= 1
    return start, end


def _same(word: str, other: str) -> bool:
    """Return whether one word is the other with inner letters in another order, up to two of them missing."""
    if word == other:
        return True
    longer, shorter = (word, other) if len(word) >= len(other) else (other, word)
    if len(longer) < 4 or word[0] != other[0] or word[-1] != other[-1] or len(longer) - len(shorter) > 2:
        return False
    return not Counter(shorter) - Counter(longer)


def _codes(listed: Sequence[str]) -> NDArray[np.uint64]:
    """Return for each word a number for what typing errors leave of it; words of pig latin all end alike."""
    codes = []
    for word in listed:
        last = word[-3] if len(word) > 3 and word.endswith("ay") else word[-1]
        codes.append(ord(word[0]) << 32 | ord(last) << 8 | min(len(word), 3))
    return np.array(codes, dtype=np.uint64)


def _hashes(codes: NDArray[np.uint64], length: int) -> NDArray[np.uint64]:
    """Return a hash for each run of so many words: of its words read in either direction."""
    count = max(0, len(codes) - length + 1)
    both = []
    for order in (range(length), range(length - 1, -1, -1)):
        sums = np.full(count, length, dtype=np.uint64)
        for at in order:
            sums = (sums + codes[at : at + count]) * _FACTOR
            sums ^= sums >> np.uint64(29)
        both.append(sums)
    return np.minimum(*both)

"""Decoders of what exchanges or reorders letters and words. Which cipher it was, English has to tell."""

import functools
import re
import string
from collections import Counter
from collections.abc import Iterator

import numpy as np

from guardrail.decoders.characters import letters_for_digits, look_alikes
from guardrail.decoders.codes import BLOB, blob_text, is_random
from guardrail.decoders.view import View
from guardrail.english import LETTERS, backwards, english, fluency, places, symbols
from guardrail.text import canonical
from guardrail.transforms import TRANSFORMS

_LOWER, _UPPER = string.ascii_lowercase, string.ascii_uppercase
# What each letter is read as: the alphabet forwards (rot13 and the like) or backwards (atbash), shifted. A cipher is a
# row of these, or, from `_REVERSED` on, of these with the text in reverse.
_ALPHABETS = [line[by:] + line[:by] for line in (_LOWER, _LOWER[::-1]) for by in range(26)]
_REVERSED = len(_ALPHABETS)
_TABLES = [str.maketrans(_LOWER + _UPPER, to + to.upper()) for to in _ALPHABETS]
_READ_AS = np.array([[ord(char) - ord("a") for char in to] for to in _ALPHABETS], dtype=np.int32)
_LOOKED_AT = 160  # characters that tell the cipher
_ENGLISH = 0.4  # share of known words from which a text is English as it stands
_VOTES = 7  # letters of words that one cipher makes common ones
_GAIN, _TOTAL_GAIN = 0.3, 25.0  # nats that a cipher must win: for each symbol, in all
_FLUENT = -4.4  # nats for each symbol: English, typing errors and leet included
_LEAST_LETTERS = 8
_PIG_WORD = re.compile(r"(?i)\b[a-z]{2,}ay\b")
_RANDOM = np.random.default_rng(0)


def substituted(view: View) -> Iterator[str]:
    """A text by each cipher that common words, the letters' frequency, or a base64 text inside speaks for."""
    rows = _voted(view.words)
    if view.known < _ENGLISH and view.words:
        rows += [row for row in (*_fluent(view.surface), *_of_blobs(view.surface)) if row not in rows]
    for row in rows:
        yield _deciphered(row, view.surface)


def _deciphered(row: int, text: str) -> str:
    return text.translate(_TABLES[row % _REVERSED])[:: -1 if row >= _REVERSED else 1]


@functools.cache
def _ciphered_words() -> dict[str, list[int]]:
    """Return for each common word, as ciphers write it, the rows that read it."""
    model = english()
    found: dict[str, list[int]] = {}
    for word in sorted(model.common):
        if len(word) > 2 and word.isascii() and word.isalpha():
            for row in range(1, 2 * _REVERSED):
                by = row % _REVERSED
                inverse = by if by >= 26 else -by % 26  # shifts go the other way, atbash is its own inverse
                written = _deciphered(inverse + row - by, word)
                if written not in model.words:
                    found.setdefault(written, []).append(row)
    return found


def _voted(listed: list[str]) -> list[int]:
    ciphered = _ciphered_words()
    if ciphered.keys().isdisjoint(listed):
        return []
    votes: Counter[int] = Counter()
    for word in listed:
        for row in ciphered.get(word, ()):
            votes[row] += len(word)
    return [row for row, letters in votes.most_common(2) if letters >= _VOTES]


def _fluent(text: str) -> list[int]:
    """Return the cipher that makes a text clearly more fluent, if one does."""
    start = text[:_LOOKED_AT]
    plain = start if start.isascii() else start.translate(look_alikes())
    codes = symbols(f" {letters_for_digits(plain)} ")
    exchanged = symbols(f" {start} ") < LETTERS  # what only stands for a letter was not exchanged
    rows = np.where(exchanged, _READ_AS[:, np.minimum(codes, LETTERS - 1)], codes)
    trigrams = english().trigrams
    scores = np.concatenate([trigrams[places(each)].mean(1) for each in (rows, rows[:, ::-1])])
    best = int(scores.argmax())
    gain = scores[best] - scores[0]
    enough = gain > _GAIN and gain * len(codes) > _TOTAL_GAIN and exchanged.sum() >= _LEAST_LETTERS
    return [best] if enough and scores[best] > _FLUENT else []


def _of_blobs(text: str) -> list[int]:
    """Return the ciphers in which the first long run of letters and digits is base64 or hex, unless it is already."""
    match = BLOB.search(text)
    if not match or not is_random(match[0]) or blob_text(match[0]):
        return []
    texts = {row: blob_text(_deciphered(row, match[0])) for row in range(1, 2 * _REVERSED)}
    found = {row: fluency(text) for row, text in texts.items() if text}
    return sorted(found, key=found.__getitem__, reverse=True)[:2]


def reversed_words(view: View) -> Iterator[str]:
    """The words in reverse, if common words stand the wrong way round."""
    count = len(view.words)
    if count < 4 or view.known < 0.2 or english().order.get(("", view.words[0]), 0.0) > 1:
        return
    if backwards(canonical(view.raw)) > max(5, 0.3 * count):
        yield "".join(reversed(re.split(r"(\s+)", view.surface)))


def pig_latin(text: str) -> str:
    """Return a text in pig latin."""
    return TRANSFORMS["pig_latin"].apply(text, _RANDOM)


def of_pig_latin(view: View) -> Iterator[str]:
    """Pig latin; where several words have one form, the likeliest."""
    if f"{' '.join(view.words)} ".count("ay ") < 2:
        return
    known = english().words
    ending = [word for word in view.words if word.endswith("ay")]
    if sum(word not in known for word in ending) >= 2:
        every = len(ending) > 0.5 * len(view.words)
        yield _PIG_WORD.sub(
            lambda word: _unpig(word[0]) if every or word[0].lower() not in known else word[0], view.surface
        )


@functools.lru_cache(maxsize=4096)
def _unpig(word: str) -> str:
    core = word[:-2]
    moved = [core[-count:] + core[:-count] for count in range(1, min(len(core) - 1, 5) + 1)]
    options = [option for option in (*moved, core[:-1]) if option and pig_latin(option) == word] or [word]
    if word.lower() != word:  # a capital is where the word started
        options = [option for option in options if option[0].isupper()] or options
    known = english().words
    return max(options, key=lambda option: (known[option.lower()], fluency(option.lower()) * (len(option) + 2)))

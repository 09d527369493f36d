"""Decoders of what is done to single characters: hidden, replaced by look-alikes, set apart, interspersed."""

import functools
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterator

from confusable_homoglyphs.confusables import confusables_data

from guardrail.decoders.view import View, visible
from guardrail.english import english, segmented

_TAGS = {0xE0000 + code: chr(code) for code in range(ord(" "), ord("~") + 1)}
_FLAG = re.compile("\U0001f3f4[\U000e0020-\U000e007f]+")  # of England, Scotland, Wales: the honest use of tags
# Combining marks of no script in particular; in normal form C a mark that is left is hardly ever part of a word.
_LOOSE_MARKS = re.compile("[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]")
_EMOJI = re.compile("(?: ?[\u2600-\u27bf\u2b50\u2b55\U0001f000-\U0001faff]\ufe0f?)+")
_SPACED = re.compile(r"(?<!\S)\S(?:\s{1,4}\S(?!\S)){4,}")
_GAP = re.compile(r"\s+")
_JOINT = re.compile(r"(?<=[^\W_])(?:[^\w\s]|_)(?=[^\W_])")  # one mark between two letters
_HONEST_JOINTS = frozenset("'’-@/=&+#%$\"")
_SLUG_MARKS = "-_.+|/"
_NO_MARKS = f"{string.ascii_letters}{string.digits}{string.whitespace}".encode()
_FEWEST_JOINTS, _JOINTS_PER_WORD = 3, 0.4
_LEET = str.maketrans("0123456789@$", "oizeasgtbgas")
_LEET_SIGN = re.compile("[0-9@$]")
_MIXED = re.compile(r"[A-Za-z][0-9@$]|[0-9@$][A-Za-z]")
_LEET_WORD = re.compile(r"[A-Za-z0-9@$'’]+")


@functools.cache
def look_alikes() -> dict[int, str]:
    """Return the Latin letter of what looks like one or names one: Unicode's confusables, small capitals, tags."""
    found = {
        entry["c"]: letter
        for letter in string.ascii_letters
        for entry in confusables_data.get(letter, [])
        if len(entry["c"]) == 1 and entry["c"].isalpha() and not entry["c"].isascii()
    }
    for letter in string.ascii_uppercase.replace("X", ""):  # a small capital x is an x
        found[unicodedata.lookup(f"LATIN LETTER SMALL CAPITAL {letter}")] = letter.lower()
    found |= {"χ": "x", "І": "I", "Ι": "I"}  # Unicode has no x, and the capitals as an l
    return {ord(char): letter for char, letter in found.items()} | _TAGS


def latin(text: str) -> str:
    """Return a text with hidden letters shown, loose marks gone and look-alikes as the letters they look like."""
    if text.isascii():
        return text
    shown = unicodedata.normalize("NFD", visible(text))
    return unicodedata.normalize("NFKC", _LOOSE_MARKS.sub("", shown).translate(look_alikes()))


def letters_for_digits(text: str) -> str:
    """Return a text, as long as before, with the letters that digits, @ and $ stand for in leet."""
    return text.translate(_LEET)


def hidden(view: View) -> Iterator[str]:
    """Tag characters, which no font shows, as the letters they name."""
    if not view.raw.isascii() and (bare := _FLAG.sub("", view.raw)).translate(_TAGS) != bare:
        yield bare.translate(_TAGS)


def look_alike(view: View) -> Iterator[str]:
    """Letters of other scripts, small capitals and decorated letters as plain ones, if nearly all become Latin."""
    if view.raw.isascii():
        return
    composed = unicodedata.normalize("NFC", visible(view.raw))
    if composed.translate(look_alikes()) == composed and not _LOOSE_MARKS.search(composed):
        return
    found = latin(view.raw)
    letters = [char for char in found if char.isalpha()]
    if sum(map(str.isascii, letters)) >= 0.9 * len(letters):  # else it is another script, and meant to be
        yield found


def emoji(view: View) -> Iterator[str]:
    """A text without its emoji, if nearly every word has some."""
    if not view.raw.isascii() and len(_EMOJI.findall(view.raw)) > max(2, 0.45 * len(view.words)):
        yield _EMOJI.sub("", view.raw)


def spaced(view: View) -> Iterator[str]:
    """Runs of single letters as words; where all gaps are alike, the words are guessed."""
    if view.lengths.count(1) > 4 and _SPACED.search(view.surface):
        found = _SPACED.sub(lambda run: _closed(run[0]), view.surface)
        if found != view.surface:
            yield found


def _closed(run: str) -> str:
    if len(run) < 40 and sum(map(str.isalpha, run)) < 0.3 * len(run):  # formulas, lists of numbers
        return run
    [(usual, _)] = Counter(map(len, _GAP.findall(run))).most_common(1)
    closed = _GAP.sub(lambda gap: " " if len(gap[0]) > usual else "", run)
    return segmented(closed) if 7 < len(closed) < 200 and closed.isalpha() else closed


def separated(view: View) -> Iterator[str]:
    """Words without the marks between their letters: one mark between all of them, or several here and there."""
    fewest = max(_FEWEST_JOINTS, _JOINTS_PER_WORD * len(view.words))
    if view.surface.isascii() and len(view.surface.encode().translate(None, _NO_MARKS)) < fewest:
        return
    joints = _JOINT.findall(view.surface)
    if len(joints) < fewest:
        return
    mark, count = Counter(joints).most_common(1)[0]
    gaps = sum(map(str.isalnum, view.surface)) - len(view.words)
    if count > 0.6 * gaps:
        yield re.sub(rf"(?<=\w){re.escape(mark)}(?=\w)", "", view.surface)
    else:
        yield _JOINT.sub(lambda joint: joint[0] if joint[0] in _HONEST_JOINTS else "", view.surface)


def slug(view: View) -> Iterator[str]:
    """Words joined by marks, as in an address or a file name, as words."""
    if sum(map(view.surface.count, _SLUG_MARKS)) > len(view.words):
        yield _JOINT.sub(" ", view.surface)


def leet(view: View) -> Iterator[str]:
    """Words with letters for digits, if several words mix both."""
    if _LEET_SIGN.search(view.surface) and _MIXED.search(view.surface):
        mixed = sum(bool(_MIXED.search(word)) for word in view.words)
        if mixed >= 2 and mixed >= 0.2 * len(view.words):
            yield _LEET_WORD.sub(lambda word: _unleet(word[0]), view.surface)


def _unleet(word: str) -> str:
    if word.isalpha():
        return word
    known = english().words
    for read in (word.translate(_LEET), word.replace("1", "l").translate(_LEET)):
        if read.lower() in known:
            return read
    return word if word.isdigit() else word.translate(_LEET)

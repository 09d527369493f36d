"""What a guard reads of a text beside the text itself: what it says in plain letters, where these are other words."""

import re

from guardrail.deobfuscation import LOOKED_AT, deciphered
from guardrail.spelling import mended

_WORD = re.compile(r"\w+")
_OVERLAP = 5_000  # characters, of parts that are decoded at once
_ODD_CASE = 1 / 3  # of a text's words, above which capitals are a disguise


def read_as(text: str) -> list[str]:
    """Return what a guard reads of a text: the text, and what it says in plain letters where these are other words.

    Punctuation, spacing and what belongs to an emoji disguise nothing. Capitals all over do: to a model that knows them
    apart, words in them are others. Where many words are misspelt it is read with these mended, too.
    """
    return [text, *(said for said, _ in said_otherwise(text))]


def said_otherwise(text: str) -> list[tuple[str, tuple[str, ...]]]:
    """Return what a text says where these are other words than are written, each with the steps that lead there.

    A text longer than can be decoded at once is decoded in parts that overlap, of which each says something by itself.
    """
    starts = range(0, max(1, len(text) - _OVERLAP), LOOKED_AT - _OVERLAP)
    return [each for start in starts for each in _said_at_once(text[start : start + LOOKED_AT])]


def _said_at_once(text: str) -> list[tuple[str, tuple[str, ...]]]:
    said, steps = deciphered(text)
    found = _WORD.findall(text)
    odd = sum(word[1:] != word[1:].lower() for word in found)
    same = odd <= max(1, len(found) * _ODD_CASE) and (
        said == text.lower() or _WORD.findall(said) == _WORD.findall(text.casefold())
    )
    right = mended(said)
    return [*([] if same else [(said, steps)]), *([(right, (*steps, "misspelt"))] if right else [])]

"""A text as decoders look at it."""

import unicodedata

from guardrail.english import bare_words, known_share
from guardrail.text import INVISIBLE, canonical

#: Compatibility form makes sigmas of lunate sigmas, which look like c, as these do.
_LUNATE_SIGMAS = str.maketrans("ϲϹ", "сС")


class View:
    """A text and what every decoder asks of it.

    `raw` is the text as written; `surface` is in compatibility form, without invisible characters but tags, and keeps
    case and white space; `lengths` are those of what stands between its white space; `words` are those of the canonical
    text, and `known` is the share of their letters in known English words.
    """

    __slots__ = ("known", "lengths", "raw", "surface", "words")

    def __init__(self, raw: str) -> None:
        self.raw = raw
        self.surface = raw if raw.isascii() else unicodedata.normalize("NFKC", visible(raw).translate(_LUNATE_SIGMAS))
        self.lengths = list(map(len, self.surface.split()))
        self.words = bare_words(canonical(raw))
        self.known = known_share(self.words)


def visible(text: str) -> str:
    """Return a text without invisible characters, but with tags: these name letters."""
    return INVISIBLE.sub(lambda char: char[0] if "\U000e0020" <= char[0] <= "\U000e007e" else "", text)

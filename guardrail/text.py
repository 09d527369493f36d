"""Canonical text: what two spellings of one request have in common.

Records keep their original text; ids, duplicate detection and decontamination work on this form.
"""

import functools
import hashlib
import re
import unicodedata

import regex

# Zero-width and joiner characters, soft hyphen, bidi controls, variation selectors and the tag block: invisible to a
# reader, and therefore free to an attacker.
INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\ufe00-\ufe0f\ufeff\U000e0000-\U000e01ef]"
)
#: Characters of scripts that have no spaces between words: Thai and Lao, kana, Han; no marks over and under others.
UNSPACED = re.compile(
    "[\u0e00-\u0e30\u0e32\u0e33\u0e40-\u0e46\u0e4f-\u0eb0\u0eb2\u0eb3\u0ebd-\u0ec7\u0ecf-\u0eff"
    "\u3040-\u3098\u309b-\u30ff\u3400-\u9fff]"
)
_SPACE = re.compile(r"\s+")
_WORD = regex.compile(r"\w+")  # as Unicode has it: re's cuts the words of most Indian scripts at their vowel signs
_REMEMBERED = 10_000  # characters of the longest text whose forms are kept: a thousand of 10 MB would fill the memory


def canonical(text: str) -> str:
    """Return NFKC, case-folded text without invisible characters and with single spaces."""
    return (_canonical if len(text) <= _REMEMBERED else _canonical.__wrapped__)(text)


@functools.lru_cache(maxsize=1024)  # one text is looked at by several rules in a row
def _canonical(text: str) -> str:
    if text.isascii():  # as most texts are; nearly five times as fast
        return " ".join(text.lower().split())
    visible = INVISIBLE.sub("", unicodedata.normalize("NFKC", text))
    return _SPACE.sub(" ", unicodedata.normalize("NFKC", visible.casefold())).strip()


def encodable(text: str) -> str:
    """Return a text of as many characters that has UTF-8: half a surrogate pair, which JSON can spell, becomes "?"."""
    return text.encode("utf-8", "replace").decode()


def joined(text: str, response: str | None) -> str:
    """Return what a guard reads for a request and the answer to it, if any."""
    return text if response is None else f"{text}\n\n{response}"


def words(text: str) -> list[str]:
    """Return the words of the canonical text, punctuation dropped."""
    return list((_words if len(text) <= _REMEMBERED else _words.__wrapped__)(text))


@functools.lru_cache(maxsize=1024)
def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(canonical(text)))


def digest(*parts: str) -> str:
    """Return the first 16 hex digits of SHA-256 over the parts; used wherever a stable short id is needed."""
    hasher = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        hasher.update(len(data).to_bytes(8, "little") + data)
    return hasher.hexdigest()[:16]

"""Decoders of codes, which give bytes or letters other names. They work in place: what is around a code stays."""

import base64
import binascii
import html
import re
import string
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import unquote

import numpy as np

from guardrail.decoders.view import View
from guardrail.transforms import TRANSFORMS

_SHORTEST_BLOB = 12
BLOB = re.compile(rf"(?<![\w+/])[A-Za-z0-9+/_-]{{{_SHORTEST_BLOB},}}+={{0,2}}")
_HEX = re.compile(r"(?<![0-9A-Za-z])(?:0x|\\x)?[0-9a-fA-F]{2}(?:[ :,]?(?:0x|\\x)?[0-9a-fA-F]{2}){5,}(?![0-9A-Za-z])")
_BINARY = re.compile(r"(?<![01])[01]{8}(?:\s*[01]{8}){3,}+")
_WRAPPED_LINE = re.compile(r"(?<=[A-Za-z0-9+/]{60})\r?\n(?=[A-Za-z0-9+/=])")
_DIGIT = re.compile("[0-9]")
_RANDOM = np.random.default_rng(0)


def _names(code: str, of: str) -> dict[str, str]:
    return {TRANSFORMS[code].apply(char, _RANDOM): char for char in of}


_MORSE = _names("morse", string.ascii_lowercase + string.digits + " .,?'!/()&:;=+-_\"$@")
_NATO = _names("nato", string.ascii_lowercase + " ") | {"alpha": "a", "juliet": "j", "whisky": "w", "x-ray": "x"}
_MORSE_SIGN = re.compile(r"(?<!\S)[.-]{1,7}(?!\S)")
_MORSE_RUN = re.compile(r"(?<!\S)(?:(?:[.-]{1,7}|\S)(?:\s+|\Z)){5,}+")
_NATO_RUN = re.compile(rf"(?i)(?<!\S)(?:(?:{'|'.join(_NATO)}|\S)(?:\s+|\Z)){{4,}}+")


def blob_text(blob: str) -> str | None:
    """Return what base64 or hex without gaps encodes, or None where that is no text."""
    return _of_base64(blob) or _of_hex(blob)


def is_random(blob: str) -> bool:
    """Return whether a long run of letters and digits is neither a word nor a number: some decode by chance."""
    return not (blob.isalpha() and blob[1:].islower()) and not blob.isdigit()


def _readable(data: bytes) -> str | None:
    """Return bytes as text, or None if more than a tenth of it could not be read."""
    text = data.decode("utf-8", "replace")
    unreadable = sum(char == "\ufffd" or (char < " " and char not in "\t\n\r") for char in text)
    return text if text and unreadable * 10 <= len(text) else None


def _of_base64(blob: str) -> str | None:
    body = blob.rstrip("=").replace("-", "+").replace("_", "/")
    body = body[:-1] if len(body) % 4 == 1 else body  # was cut off
    try:
        return _readable(base64.b64decode(body + "=" * (-len(body) % 4), validate=True))
    except binascii.Error:
        return None


def _of_hex(digits: str) -> str | None:
    try:
        return _readable(bytes.fromhex(re.sub(r"0x|[\\x :,]", "", digits)))
    except ValueError:
        return None


def _of_bits(bits: str) -> str | None:
    joined = re.sub(r"\s", "", bits)
    return _readable(int(joined, 2).to_bytes(len(joined) // 8, "big"))


def _replaced(pattern: re.Pattern[str], decode: Callable[[str], str | None], text: str) -> Iterator[str]:
    if pattern.search(text):
        found = pattern.sub(lambda match: decode(match[0]) or match[0], text)
        if found != text:
            yield found


def base_64(view: View) -> Iterator[str]:
    """Base64, of either alphabet, in one piece or in lines."""
    if max(view.lengths, default=0) < _SHORTEST_BLOB:
        return
    text = _WRAPPED_LINE.sub("", view.surface) if "\n" in view.surface else view.surface
    yield from _replaced(BLOB, lambda blob: _of_base64(blob) if is_random(blob) else None, text)


def hexadecimal(view: View) -> Iterator[str]:
    """Hexadecimal bytes."""
    if _DIGIT.search(view.surface):
        yield from _replaced(_HEX, _of_hex, view.surface)


def binary(view: View) -> Iterator[str]:
    """Bytes as ones and zeros, in reverse too."""
    if _DIGIT.search(view.surface):
        yield from _replaced(_BINARY, lambda bits: _of_bits(bits) or _of_bits(bits[::-1]), view.surface)


def _spelled(run: str, alphabet: Mapping[str, str]) -> str:
    spelled = run.rstrip()
    return "".join(alphabet.get(word.lower(), word) for word in spelled.split(" ")) + run[len(spelled) :]


def morse(view: View) -> Iterator[str]:
    """Morse code, and Morse code in reverse, which is Morse code too."""
    if sum(map(view.surface.count, ".-")) >= 5 and len(_MORSE_SIGN.findall(view.surface)) >= 5:
        yield _MORSE_RUN.sub(lambda run: _spelled(run[0], _MORSE), view.surface)
        yield _MORSE_RUN.sub(lambda run: _spelled(run[0][::-1], _MORSE), view.surface)


def nato(view: View) -> Iterator[str]:
    """Words of the NATO alphabet."""
    if _NATO.keys().isdisjoint(view.words):
        return
    if sum([word in _NATO and word != "/" for word in view.words]) >= 4 and _NATO_RUN.search(view.surface):
        yield _NATO_RUN.sub(lambda run: _spelled(run[0], _NATO), view.surface)


def escapes(view: View) -> Iterator[str]:
    """Escapes of addresses (%20) and of HTML (&amp;)."""
    if "%" in view.surface and (found := unquote(view.surface)) != view.surface:
        yield found
    if "&" in view.surface and (found := html.unescape(view.surface)) != view.surface:
        yield found

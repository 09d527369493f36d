"""What a disguised text can be read as, and what it most likely says.

`guardrail.decoders` has the single steps; here they are followed, and English tells where they lead.
"""

import functools
import math
import re
from typing import NamedTuple

from guardrail.decoders import DECODERS, View
from guardrail.english import fluency
from guardrail.text import canonical, encodable

LOOKED_AT = 50_000  # characters of a text that are decoded at once
MOST_READINGS = 16
_LIGATURES = re.compile("[\ufdfa\ufdfb]")  # phrases of 18 and 8 letters: a text of them would be read as one so long
_DEPTH = 2
_EACH_STEP = 0.1  # nats for each symbol: of two readings as good, the one fewer steps away
_ENGLISH = -3.4  # nats for each symbol: the fluency under which a reading is not English
_CLEARLY = 0.7  # nats for each symbol that a reading must have over the text itself
_CODES = frozenset({"base_64", "hexadecimal", "binary", "morse"})  # decoders
_SOME_WORDS = 5  # that a reading has if it may be taken with no English in it
_MORE_WORDS = 0.08  # share of the letters that it must have more in known words


class _Reading(NamedTuple):
    text: str
    view: View
    evidence: float  # of the steps that led here, in nats for each symbol; minus infinity: not to be taken for the text
    steps: tuple[str, ...] = ()  # names of the decoders


class Deciphered(NamedTuple):
    """What a text most likely says, in canonical form, and the steps that lead there; none where it says what it is."""

    text: str
    steps: tuple[str, ...]


def readings(text: str) -> list[str]:
    """Return what a text can be read as, in canonical form: the text itself first, then what fewer steps lead to.

    At most `MOST_READINGS`, up to two steps deep. Only the first `LOOKED_AT` characters are decoded, and no reading but
    the first is longer: what comes later is only found as it stands. No string fails.
    """
    return [reading.text for reading in _found(text)]


def plain(text: str) -> str:
    """Return what a text most likely says; see `deciphered`."""
    return deciphered(text).text


def deciphered(text: str) -> Deciphered:
    """Return what a text most likely says, in canonical form: itself, unless a reading is clearly better English.

    What is quoted in other words (a code block, tags) stays; what is written in another language does too.
    """
    literal, *others = _found(text)
    if not others:
        return Deciphered(literal.text, ())
    written = fluency(literal.text)
    best, least = literal, written + _CLEARLY
    for reading in others:
        said = fluency(reading.text)
        more_words = reading.view.known - literal.view.known > _MORE_WORDS
        # Around a code, which nobody writes by accident, there may be no English at all.
        speaks = _CODES.issuperset(reading.steps) and len(reading.view.words) >= _SOME_WORDS
        is_english = said > _ENGLISH or (speaks and said >= written)
        if is_english and said + reading.evidence > least and (reading.evidence > 0 or more_words):
            best, least = reading, said + reading.evidence
    return Deciphered(best.text, best.steps)


@functools.lru_cache(maxsize=16)  # `readings` and `plain` are asked of one text
def _found(text: str) -> tuple[_Reading, ...]:
    literal = _Reading(canonical(_LIGATURES.sub(" ", text)), View(text[:LOOKED_AT]), 0.0)
    found = {literal.text: literal}
    last = [literal]
    for _ in range(_DEPTH):
        last = [each for parent in last for each in _steps(parent, found)]
    return tuple(found.values())


def _steps(parent: _Reading, found: dict[str, _Reading]) -> list[_Reading]:
    """Return what one step leads to, and add it to what is found."""
    new: list[_Reading] = []
    for evidence, decoders in DECODERS:
        for decoder in decoders:
            for decoded in decoder(parent.view):
                start = encodable(decoded[:LOOKED_AT])
                text = canonical(start)[:LOOKED_AT]
                if text and text not in found and len(found) < MOST_READINGS:
                    both = max(evidence, parent.evidence) if min(evidence, parent.evidence) > -math.inf else -math.inf
                    steps = *parent.steps, decoder.__name__
                    found[text] = _Reading(text, View(start), both - _EACH_STEP, steps)
                    new.append(found[text])
    return new

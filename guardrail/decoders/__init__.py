"""Single steps back from a disguised text: each decoder undoes one way of writing, in place where it can.

A decoder takes a view of a text and yields what it may have been made from: for ordinary text nothing, after a cheap
look. It need not be right: what a reading says decides. The ways of writing are those of `guardrail.transforms`, and
the escapes of URLs and HTML.
"""

import math
from collections.abc import Callable, Iterator

from guardrail.decoders import characters, ciphers, codes, wrappings
from guardrail.decoders.view import View

__all__ = ["DECODERS", "Decoder", "View"]

Decoder = Callable[[View], Iterator[str]]

#: Decoders by how much they say for themselves, in nats for each symbol of the reading: nobody writes Morse code by
#: accident, while a cipher has to prove itself, and text without its tags is not what was meant.
DECODERS: tuple[tuple[float, tuple[Decoder, ...]], ...] = (
    (
        1.0,
        (
            characters.hidden,
            characters.spaced,
            characters.emoji,
            wrappings.json_message,
            wrappings.xml_message,
            wrappings.split_payload,
            wrappings.without_control_tokens,
            ciphers.reversed_words,
            codes.base_64,
            codes.hexadecimal,
            codes.binary,
            codes.morse,
            codes.nato,
        ),
    ),
    (
        0.0,
        (
            characters.look_alike,
            characters.separated,
            characters.leet,
            codes.escapes,
            ciphers.substituted,
            ciphers.of_pig_latin,
            wrappings.code_block,
        ),
    ),
    (-math.inf, (characters.slug, wrappings.without_tags)),
)

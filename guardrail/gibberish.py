"""Whether the letters of a text make words, and whether these might be in no order.

Letters are held against the trigrams of `guardrail.english`, which cost microseconds and know English only. A causal
language model knows more of words in order, and costs milliseconds a token: `guardrail/word_order.py`.
"""

import math
import re

from guardrail.english import backwards, bare_words, english, fluency
from guardrail.text import canonical

LOOKED_AT = 1000  # characters
_ADDRESS = re.compile(r"https?://\S+|www\.\S+|[@#]\w+|&#?\w+;")
# What has a digit or a sign of code in it may be a name, a number, code or leet.
_NO_PLAIN_WORD = re.compile(r"\S*[\d@$_/\\=+<>{}|~^*#&]\S*")
_WORD = re.compile(r"[^\W\d_]+")
_SHORT = 3  # letters: words of fewer are words in any order
_FEWEST_LETTERS = 10
_FEWEST_COMMON = 3  # words that tell an order
_IN_ORDER = 8.0  # nats


def without_addresses(text: str) -> str:
    """Return the text without what is spelt as no language is: web addresses, mentions, tags, HTML entities."""
    return _ADDRESS.sub(" ", text)


def spelling(text: str) -> float | None:
    """Return how likely the characters in the words of a text are, in nats each; English lies about -2.

    It is the mean log probability and twice the error that a mean of so few would have at a deviation of one, so that
    short texts are in less danger of being called gibberish. Keyboard mash, random letters and shuffled ones lie under
    -3.545; so do ciphers, and other languages in these letters.

    None where too little can be told: under ten letters in words of three or more, or one such word, or another
    alphabet, digits and signs in most of the text.
    """
    plain = without_addresses(canonical(text[:LOOKED_AT]))
    words = [word for word in _WORD.findall(_NO_PLAIN_WORD.sub(" ", plain)) if word.isascii()]
    told = [word for word in words if len(word) >= _SHORT]
    letters = sum(map(len, told))
    if len(told) < 2 or letters < _FEWEST_LETTERS or 2 * sum(map(len, words)) < len("".join(plain.split())):
        return None
    return fluency(" ".join(told)) + 2 / math.sqrt(letters)


def may_be_disordered(text: str) -> bool:
    """Whether common English words stand in a text in an order that is not clearly theirs, as in a third of requests.

    False where there are too few of them to tell. It costs nothing beside `WordOrder`, and misses one disordered text
    in ten.
    """
    plain = canonical(text[:LOOKED_AT])
    common = sum(word in english().common for word in bare_words(plain))
    return common >= _FEWEST_COMMON and -backwards(plain) < _IN_ORDER

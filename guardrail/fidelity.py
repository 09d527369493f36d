"""Whether a rewriting still asks for the same thing: what embeddings do not see.

"Is a hoax" and "is not a hoax" are 0.9 similar. These rules look at content words and at the words that turn a request
around. English; for other languages they find nothing to object to.
"""

from collections import Counter

import snowballstemmer
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from guardrail.text import words

_NEGATIONS = frozenset("no not never none nothing nobody neither nor cannot without".split())
# What makes a request for harm into one against it, or disowns what follows.
_TURNS = frozenset(
    """
    avoid avoided avoiding prevent prevented preventing prevention stop stopped stopping against refuse refused
    refuses refusing detect detecting detection protect protected protecting protection safe safely safety ethical
    ethically unethical illegal illegally unlawful wrong harmful dangerous inappropriate unacceptable warn warned
    warning warnings hoax fake false counterexample condemn condemned denounce report reported reporting discourage
    discouraged combat combating counter countering oppose opposed opposing instead legal legally lawful lawfully
    legitimate healthy responsible responsibly respectful respectfully consensual consent help helpline therapist
    support supportive recover recovery mitigate defend defending defense awareness educate educational
    """.split()
)
_stemmer = snowballstemmer.stemmer("english")
_TURN_STEMS = {word: _stemmer.stemWord(word) for word in _TURNS}


def content_words(text: str) -> list[str]:
    """Return the stems (Porter) of the words that carry meaning."""
    return _stemmer.stemWords([word for word in words(text) if word not in ENGLISH_STOP_WORDS and len(word) > 2])


def content_overlap(reference: str, text: str) -> float:
    """Return the share of the reference's content words that the text has, in [0, 1]; 1 where it has none."""
    wanted = set(content_words(reference))
    if not wanted:
        return 1.0
    return len(wanted.intersection(content_words(text))) / len(wanted)


def polarity_flipped(reference: str, text: str) -> bool:
    """Whether the text negates, or turns against, what the reference does not; or the other way round."""
    return any(turned(reference, text))


def turned(reference: str, text: str) -> tuple[bool, bool]:
    """Return whether the text lacks a negation or turning word of the reference, and whether it has one more."""
    before, after = _turns(reference), _turns(text)
    return bool(before - after), bool(after - before)


def _turns(text: str) -> Counter[str]:
    found: Counter[str] = Counter()
    # A negated contraction is split by the apostrophe: "don't" gives "don" and "t".
    listed = words(text.replace("\u2019", "'").replace("n't", " not "))
    for word in listed:
        if word in _NEGATIONS:
            found["negation"] += 1
        elif word in _TURN_STEMS:
            found[_TURN_STEMS[word]] = 1
    return found

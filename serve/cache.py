"""Verdicts on texts that were asked before: a text, to the last character, has one verdict by one guard."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

from guardrail.guard import Verdict
from guardrail.reading import Readable

_LONGEST = 10_000  # characters: a verdict keeps what a disguised text says


class VerdictCache:
    """The verdicts of one guard that were asked for last; keeps hashes of texts, not the texts.

    Args:
        size: how many; 0 keeps none.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[bytes, Verdict] = OrderedDict()

    def get(self, texts: Sequence[Readable]) -> list[Verdict | None]:
        """Return the verdict on each text, None where it is not known."""
        if not self._kept:
            return [None] * len(texts)
        found = []
        for text in texts:
            key = _key(text)
            verdict = self._kept.get(key)
            if verdict is not None:
                self._kept.move_to_end(key)
            found.append(verdict)
        return found

    def put(self, texts: Sequence[Readable], verdicts: Sequence[Verdict]) -> None:
        """Keep verdicts, and forget those that were not asked for the longest."""
        for text, verdict in zip(texts, verdicts, strict=True):
            if len(str(text)) + len(verdict.said or "") <= _LONGEST:
                self._kept[_key(text)] = verdict
        while len(self._kept) > self._size:
            self._kept.popitem(last=False)


def _key(text: Readable) -> bytes:
    return hashlib.sha256(repr(text).encode()).digest()  # which tells an exchange from its text

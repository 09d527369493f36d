"""What duplicate detection and decontamination compare, computed once for each record: a MinHash signature.

Sources: Broder, "On the resemblance and containment of documents" (1997); Dahlgaard et al., "Fast Similarity Sketching"
(2017), which is how rensa fills a signature; Li and König, "b-Bit Minwise Hashing" (2010), for 16 bits a slot.
"""

import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rensa import RMinHash

from guardrail.curation.config import CurationConfig
from guardrail.curation.stage import are_attacks
from guardrail.decoders.wrappings import EXTRACTING
from guardrail.deobfuscation import deciphered
from guardrail.text import canonical, joined, words

Hashes = NDArray[np.uint64]
Signatures = NDArray[np.uint16]  # [texts, permutations]

#: What facts hang on beside the records: names of settings.
SETTINGS = ("permutations", "shingle", "shingle_unit")

_SEED = 1
_WRAPPING = 100  # characters of the keys, tags and words that a text is wrapped in: no transform needs as many
_NUMBERS_AT_ONCE = 1_000_000  # characters' hashes and signatures' slots that are in memory together, a few times
# Random odd factors of multilinear hashing: sums of units times factors, modulo 2^64.
_FACTORS = np.random.default_rng(20).integers(0, 2**63, 256, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def facts(config: CurationConfig, batch: pa.Table) -> pa.Table:
    """Return what a batch of records has beside its columns: `signature`, as `stored_signatures` reads it.

    It is of what a text says, so that a copy in lookalikes, leet or JSON is near its original; an attack is disguised
    on purpose, and signed as it is written.
    """
    columns = (batch[name].to_pylist() for name in ("text", "response"))
    texts = [
        joined(*both) if attack else joined(_said(both[0]), both[1] and _said(both[1]))
        for both, attack in zip(zip(*columns, strict=True), are_attacks(batch), strict=True)
    ]
    found = signatures(texts, config)
    width = pa.binary(found.itemsize * config.permutations)
    return pa.table({"signature": pa.Array.from_buffers(width, len(found), [None, pa.py_buffer(found.tobytes())])})


def _said(text: str) -> str:
    """Return what a text says, or the text itself where that leaves out more than what it is wrapped in.

    Prompts that share a question may quote documents about anything.
    """
    said, steps = deciphered(text)
    if steps and EXTRACTING.issuperset(steps) and len(canonical(text)) - len(said) > max(_WRAPPING, len(said) / 2):
        return text
    return said


def stored_signatures(column: pa.ChunkedArray) -> Signatures:
    """Return the signatures of a column that `facts` made, row by row."""
    stored = np.frombuffer(b"".join(column.to_pylist()), dtype=np.uint16)
    return stored.reshape(len(column), -1) if len(column) else stored.reshape(0, column.type.byte_width // 2)


def signatures(texts: Sequence[str], config: CurationConfig) -> Signatures:
    """Return MinHash signatures of the texts' canonical forms over their shingles.

    A text that is shorter than a shingle is one shingle.
    """
    signed = [np.empty((0, config.permutations), dtype=np.uint16)]
    for part in _parts(texts, config.permutations):
        hashes, counts = _shingles(part, config)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, config.permutations, _SEED)
        # The low bits are uniform; unequal slots are equal in them once in 65,536 times.
        signed.append(np.array(matrix.to_rows(), dtype=np.uint32).astype(np.uint16))
    return np.concatenate(signed)


def similarity(one: Signatures, other: Signatures) -> NDArray[np.float64]:
    """Return the estimated Jaccard similarity of each row of one with the same row of the other."""
    return np.asarray((one == other).mean(axis=1))


@functools.cache
def bands(config: CurationConfig) -> tuple[int, int]:
    """Return in how many bands of how many slots signatures are compared to find candidates.

    Two texts of similarity s are candidates with the probability 1 - (1 - s^slots)^bands (Leskovec et al., "Mining of
    Massive Datasets", 3.4.2). Candidates are verified, so that a wrong one costs only time and a missed one a
    duplicate: of all choices this minimises 0.05 times what is wrongly proposed plus 0.95 times what is missed, with
    similarities equally likely.
    """
    similarities = np.linspace(0, 1, 1001)
    over = similarities >= config.near_duplicate
    choices = [
        (count, slots)
        for count in range(1, config.permutations + 1)
        for slots in range(1, config.permutations // count + 1)
    ]

    def loss(choice: tuple[int, int]) -> float:
        proposed = 1 - (1 - similarities ** choice[1]) ** choice[0]
        return float(np.where(over, 0.95 * (1 - proposed), 0.05 * proposed).sum())

    return min(choices, key=loss)


def band_keys(signed: Signatures, config: CurationConfig) -> Hashes:
    """Return a hash of each band of each signature [texts, bands]; rows that share one are candidates."""
    count, slots = bands(config)
    banded = signed[:, : count * slots].reshape(len(signed), count, slots).astype(np.uint64)
    factors = np.resize(_FACTORS, slots)
    return _spread((banded * factors).sum(axis=2, dtype=np.uint64))


class NearIndex:
    """Signatures that others are looked up in."""

    def __init__(self, signed: Signatures, config: CurationConfig) -> None:
        keys = band_keys(signed, config)
        self._signed, self._config = signed, config
        self._order = np.argsort(keys, axis=0, kind="stable")
        self._keys = np.take_along_axis(keys, self._order, axis=0)

    def near(self, signed: Signatures) -> list[tuple[int, int, float]]:
        """Return row, indexed row and similarity of those that reach `near_duplicate`, by row and indexed row."""
        pairs = [np.empty((0, 2), dtype=np.int64)]
        for ordered, known, wanted in zip(self._order.T, self._keys.T, band_keys(signed, self._config).T, strict=True):
            start, end = (np.searchsorted(known, wanted, side=side) for side in ("left", "right"))
            found = ordered[ranges(start, end - start)]
            pairs.append(np.stack([np.repeat(np.arange(len(wanted)), end - start), found], axis=1))
        rows, indexed = np.unique(np.concatenate(pairs), axis=0).T
        similarities = similarity(signed[rows], self._signed[indexed])
        near = similarities >= self._config.near_duplicate
        return list(zip(rows[near].tolist(), indexed[near].tolist(), similarities[near].tolist(), strict=True))


def ranges(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return start, start + 1, ... of as many numbers as `counts` says, for one start after the other."""
    before = np.cumsum(counts) - counts
    return np.arange(counts.sum()) + np.repeat(starts - before, counts)


def _parts(texts: Sequence[str], slots: int) -> Iterator[Sequence[str]]:
    """Yield the texts in parts that need no more than `_NUMBERS_AT_ONCE`, or are one text."""
    part_of = np.cumsum([len(text) + slots for text in texts], dtype=np.int64) // _NUMBERS_AT_ONCE
    bounds = [0, *(np.flatnonzero(np.diff(part_of)) + 1).tolist(), len(texts)]
    for start, end in itertools.pairwise(bounds):
        if start < end:
            yield texts[start:end]


def _shingles(texts: Sequence[str], config: CurationConfig) -> tuple[Hashes, NDArray[np.int64]]:
    """Return the hashes of the texts' shingles, one text after the other, and how many each has."""
    padding = config.shingle - 1  # zeros after each text: no shingle reaches into the next one
    if config.shingle_unit == "characters":
        plain = [canonical(text) for text in texts]
        lengths = np.array([len(text) for text in plain], dtype=np.int64)
        padded = "".join(text + "\0" * padding for text in plain)
        units = np.frombuffer(padded.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    else:
        listed = [words(text) or [canonical(text)] for text in texts]
        lengths = np.array([len(text) for text in listed], dtype=np.int64)
        flat = [word for text in listed for word in itertools.chain(text, itertools.repeat("", padding))]
        hashes = {word: _word_hash(word) for word in set(flat)}
        units = np.fromiter((hashes[word] for word in flat), dtype=np.uint64, count=len(flat))
    starts = np.cumsum(lengths + padding) - (lengths + padding)
    counts = np.maximum(lengths - padding, np.minimum(lengths, 1))
    last = max(0, len(units) - padding)
    sums = np.zeros(last, dtype=np.uint64)
    for place in range(config.shingle):
        sums += units[place : place + last] * _FACTORS[place]
    return _spread(sums)[ranges(starts, counts)], counts


def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _spread(hashes: Hashes) -> Hashes:
    """Return hashes that differ in all bits where these differ in one (the finaliser of splitmix64)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        hashes = (hashes ^ (hashes >> np.uint64(shift))) * np.uint64(factor)
    return hashes ^ (hashes >> np.uint64(31))

"""Stages that find texts that are one text: exactly, or nearly."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from datasketch import MinHash, MinHashLSH

from guardrail.curation.config import CurationConfig
from guardrail.curation.stage import Drop, Judge, Survey, seed_first
from guardrail.records import Record, from_table
from guardrail.text import canonical, digest, joined

_SCHEME: Literal["affine32"] = "affine32"


class ExactDuplicates:
    """Records of one id. A seed wins; without a seed to decide, contradictory labels drop them all."""

    name = "exact"

    def prepare(self, survey: Survey) -> Judge:
        """Gather ids, labels and digests of the whole records, and find what repeats."""
        return functools.partial(_judge_repeated, repeated(survey(_digest)))


def _digest(batch: pa.Table) -> pa.Table:
    digests = [digest(repr(list(record.items()))) for record in from_table(batch)]
    return batch.select(["row", "id", "unsafe", "method"]).append_column("digest", pa.array(digests, pa.string()))


def repeated(rows: Iterable[Mapping[str, Any]]) -> dict[int, Drop]:
    """Return what to drop, by row number.

    Args:
        rows: of row, id, unsafe, method, digest (of the whole record); which of the equals stays hangs on the last, so
            that it does not hang on their order.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["id"], []).append(row)
    drops: dict[int, Drop] = {}
    for record_id, equals in groups.items():
        deciding = [row for row in equals if row["method"] == "seed"] or equals
        contradictory = len({row["unsafe"] for row in deciding}) > 1
        kept = None if contradictory else min(deciding, key=lambda row: (row["digest"], row["row"]))
        reason = "contradictory labels" if contradictory else "duplicate"
        drops |= {row["row"]: Drop(reason, record_id) for row in equals if row is not kept}
    return drops


def _judge_repeated(drops: Mapping[int, Drop], records: Sequence[Record]) -> list[Drop | None]:
    return [drops.get(record["row"]) for record in records]


class NearDuplicates:
    """Records of one label whose texts share most of their character shingles; the component's first stays.

    MinHash with locality-sensitive hashing: Broder, "On the resemblance and containment of documents" (1997).
    """

    name = "near"

    def __init__(self, config: CurationConfig) -> None:
        self.config = config

    def prepare(self, survey: Survey) -> Judge:
        """Gather ids, labels and signatures, and find the components."""
        signed = survey(functools.partial(_sign, self.config))
        return functools.partial(_judge_twins, twins(signed, self.config))


def _sign(config: CurationConfig, batch: pa.Table) -> pa.Table:
    texts = [joined(t, r) for t, r in zip(batch["text"].to_pylist(), batch["response"].to_pylist(), strict=True)]
    signatures = [minhash(text, config).hashvalues.tolist() for text in texts]
    return batch.select(["id", "unsafe", "method"]).append_column(
        "signature", pa.array(signatures, type=pa.list_(pa.uint32()))
    )


def minhash(text: str, config: CurationConfig) -> MinHash:
    """Return the signature of a text's canonical form over its character shingles."""
    plain = canonical(text)
    shingles = {plain[i : i + config.shingle] for i in range(max(1, len(plain) - config.shingle + 1))}
    signature = MinHash(num_perm=config.permutations, scheme=_SCHEME)
    signature.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in shingles])
    return signature


def twins(signed: Iterable[Mapping[str, Any]], config: CurationConfig) -> dict[str, str]:
    """Return for each record that is not the first of its component the id of that first one.

    Args:
        signed: rows of id, unsafe, method and signature, in any order.
        config: similarity and permutations.
    """
    rows = sorted(signed, key=seed_first)
    lsh = {label: MinHashLSH(config.near_duplicate, config.permutations) for label in (True, False)}
    hashes = [MinHash(hashvalues=np.array(row["signature"], dtype=np.uint32), scheme=_SCHEME) for row in rows]
    first = list(range(len(rows)))

    def root(index: int) -> int:
        while first[index] != index:
            first[index] = first[first[index]]
            index = first[index]
        return index

    for index, row in enumerate(rows):
        index_of_label = lsh[row["unsafe"]]
        for other in index_of_label.query(hashes[index]):
            if hashes[index].jaccard(hashes[other]) >= config.near_duplicate:
                a, b = root(index), root(other)
                first[max(a, b)] = min(a, b)  # rows are in order of preference
        index_of_label.insert(index, hashes[index])
    return {row["id"]: rows[root(i)]["id"] for i, row in enumerate(rows) if root(i) != i}


def _judge_twins(found: Mapping[str, str], records: Sequence[Record]) -> list[Drop | None]:
    return [Drop("near duplicate", found[r["id"]]) if r["id"] in found else None for r in records]

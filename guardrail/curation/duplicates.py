"""Stages that find texts that are one text: exactly, or nearly."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from guardrail.curation.config import CurationConfig
from guardrail.curation.facts import from_bytes, near_index
from guardrail.curation.stage import Drop, Judge, Survey, seed_first


class ExactDuplicates:
    """Records of one id. A seed wins; without a seed to decide, contradictory labels drop them all."""

    name = "exact"
    settings: Mapping[str, Any] = {}

    def prepare(self, survey: Survey) -> Judge:
        """Gather ids, labels and digests of the whole records, and find what repeats."""
        return functools.partial(_judge_repeated, repeated(survey.kept(["row", "id", "unsafe", "method", "digest"])))


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


def _judge_repeated(drops: Mapping[int, Drop], batch: pa.Table) -> list[Drop | None]:
    return [drops.get(row) for row in batch["row"].to_pylist()]


class NearDuplicates:
    """Records of one label whose texts share most of their character shingles; the component's first stays.

    Candidates come from locality-sensitive hashing of MinHash signatures; see `guardrail.curation.facts`.
    """

    name = "near"

    def __init__(self, config: CurationConfig) -> None:
        self.config = config
        self.settings: Mapping[str, Any] = config.model_dump(include={"near_duplicate", "permutations", "shingle"})

    def prepare(self, survey: Survey) -> Judge:
        """Gather ids, labels and signatures, and find the components."""
        return functools.partial(_judge_twins, twins(survey.kept(["id", "unsafe", "method", "signature"]), self.config))


def twins(signed: Iterable[Mapping[str, Any]], config: CurationConfig) -> dict[str, str]:
    """Return for each record that is not the first of its component the id of that first one.

    Args:
        signed: rows of id, unsafe, method and signature, in any order.
        config: similarity and permutations.
    """
    rows = sorted(signed, key=seed_first)
    lsh = {label: near_index(config) for label in (True, False)}
    hashes = [from_bytes(row["signature"]) for row in rows]
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


def _judge_twins(found: Mapping[str, str], batch: pa.Table) -> list[Drop | None]:
    return [Drop("near duplicate", found[i]) if i in found else None for i in batch["id"].to_pylist()]

"""Stages that find texts that are one text: exactly, or nearly."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from guardrail.curation.components import Indices, component_drops, components
from guardrail.curation.config import CurationConfig
from guardrail.curation.equals import equals, numbered
from guardrail.curation.facts import Signatures, band_keys, bands, ranges, similarity, stored_signatures
from guardrail.curation.stage import ByRow, Judge, Survey, seed_first
from guardrail.curation.written import column_at
from guardrail.records import from_table
from guardrail.text import digest

_BANDS_AT_ONCE = 4  # in one task: what one band has joined, the next ones need not compare
_LEADERS = 100  # of a group of candidates, with which all its members are compared: bounds what boilerplate costs
_PAIRS_AT_ONCE = 50_000  # whose signatures are in memory together: 25 MB


class ExactDuplicates:
    """Records of one id. A seed wins; without a seed to decide, contradictory labels drop them all."""

    name = "exact"
    settings: Mapping[str, Any] = {}

    def prepare(self, survey: Survey) -> Judge:
        """Find the ids that repeat, have their whole records digested, and choose which of them stay."""
        records = survey.kept(["row", "id", "unsafe", "method"])
        number = numbered(records["id"])
        records = records.filter(pa.array(np.bincount(number)[number] > 1)).sort_by("row")
        digests = survey.computed(functools.partial(_digested, records["row"].to_numpy())).sort_by("row")
        records = records.append_column("unlabelled", digests["unlabelled"]).append_column("digest", digests["digest"])
        return ByRow(repeated(records))


def repeated(records: pa.Table) -> pa.Table:
    """Return what to drop of records that share their id with others: row, reason, evidence.

    Args:
        records: row, id, unsafe, method, unlabelled (its categories are not known), digest (of the whole record); which
            of the equals stays hangs on these two, so that it does not hang on their order.
    """
    found = equals(records, "unlabelled", "digest", "row")
    unsafe, number = found.records["unsafe"].to_numpy(), found.number
    dropped = np.ones(len(records), dtype=bool)
    dropped[found.starts] = found.contradictory
    reasons = np.where(unsafe == unsafe[found.starts][number], "duplicate", "labelled otherwise by a seed")
    reasons = np.where(found.contradictory[number], "contradictory labels", reasons)
    ids, rows = found.records["id"], found.records["row"]
    drops = pa.table({"row": rows, "reason": pa.array(reasons, pa.string()), "evidence": ids})
    return drops.filter(pa.array(dropped))


def _digested(rows: Indices, batch: pa.Table) -> pa.Table:
    """Return row, digest, and whether categories are unknown, of those records whose number is in `rows`."""
    batch = batch.filter(pc.is_in(batch["row"], value_set=pa.array(rows)))
    digests = [digest(repr(list(record.items()))) for record in from_table(batch)]
    digests = pa.array(digests, pa.string())
    return pa.table({"row": batch["row"], "digest": digests, "unlabelled": batch["categories"].is_null()})


class NearDuplicates:
    """Records of one label whose texts share most of their shingles; the first of each connected component stays.

    Candidates are those that agree in a band of their MinHash signatures; estimated similarities decide. Evidence is as
    `component_drops` gives it, of the pairs that joined the component.
    """

    name = "near"

    def __init__(self, config: CurationConfig) -> None:
        self.config = config
        self.settings: Mapping[str, Any] = config.model_dump(
            include={"near_duplicate", "permutations", "shingle", "shingle_unit"}
        )

    def prepare(self, survey: Survey) -> Judge:
        """Write the bands' keys, have candidates found and compared band by band, and join what is similar."""
        records = survey.kept(["row", "id", "method"])
        order = seed_first(records)
        paths = survey.written(functools.partial(_banded, self.config))
        count = bands(self.config)[0]
        tasks = [range(start, min(count, start + _BANDS_AT_ONCE)) for start in range(0, count, _BANDS_AT_ONCE)]
        pairs = survey.each(functools.partial(_similar_pairs, paths, order, self.config.near_duplicate), tasks)
        whole = self.config.permutations
        return ByRow(component_drops(records.take(pa.array(order)), np.concatenate(pairs), whole, "near duplicate"))


def _banded(config: CurationConfig, batch: pa.Table) -> pa.Table:
    """Return the signatures, and a column of keys for each band: records that share one are candidates."""
    keys = band_keys(stored_signatures(batch["signature"]), config)
    # The last bit is the label: those of different labels are never candidates.
    keys = keys & ~np.uint64(1) | batch["unsafe"].to_numpy().astype(np.uint64)[:, None]
    return pa.table({"signature": batch["signature"]} | {f"band{i}": column for i, column in enumerate(keys.T)})


def _similar_pairs(
    paths: Sequence[Path], order: Indices, threshold: float, numbers: Sequence[int]
) -> NDArray[np.int32]:
    """Return pairs of similar records and how many slots of their signatures are equal [n, 3].

    They are enough to connect all that these bands propose.

    Args:
        paths: what `_banded` returned for each file.
        order: the records' places in these files, in the order of preference; pairs are numbers in this order.
        threshold: least similarity.
        numbers: of the bands.
    """
    groups = [_groups(_column(paths, f"band{number}")[order]) for number in numbers]
    candidates = np.unique(np.concatenate([members for members, _ in groups]))
    signed = _signatures(paths, order[candidates])
    component, found = np.arange(len(candidates)), [np.empty((0, 3), dtype=np.int64)]
    for members, sizes in groups:
        component, pairs = _linked(np.searchsorted(candidates, members), sizes, signed, threshold, component)
        found.append(pairs)
    pairs = np.concatenate(found)
    pairs[:, :2] = candidates[pairs[:, :2]]
    return pairs.astype(np.int32)


def _column(paths: Sequence[Path], name: str) -> NDArray[np.uint64]:
    return np.concatenate([pq.ParquetFile(path).read([name])[name].to_numpy() for path in paths])


def _signatures(paths: Sequence[Path], places: Indices) -> Signatures:
    """Return the signatures at these places, counted through all files."""
    found = np.empty((len(places), pq.read_schema(paths[0]).field("signature").type.byte_width // 2), dtype=np.uint16)
    for wanted, column in column_at(paths, "signature", places):
        found[wanted] = stored_signatures(column)
    return found


def _groups(keys: NDArray[np.uint64]) -> tuple[Indices, Indices]:
    """Return the places of keys that others equal, group after group, ascending within one, and the groups' sizes."""
    places = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[places], prepend=~keys[places[:1]]))
    sizes = np.diff(starts, append=len(keys))
    shared = sizes > 1
    return places[ranges(starts[shared], sizes[shared])], sizes[shared]


def _linked(
    members: Indices, sizes: Indices, signed: Signatures, threshold: float, component: Indices
) -> tuple[Indices, Indices]:
    """Compare the members of each group, and return the components then and the pairs that joined them, as `_similar`.

    Each of the first `_LEADERS` members of a group is compared with all members after it, save those that are of its
    component already: what is joined is the same as if these had been compared too, in whatever order.

    Args:
        members: of the groups, one after the other; each is a row of `signed`.
        sizes: of the groups.
        signed: signatures.
        threshold: least similarity.
        component: of each row of `signed`, as known so far.
    """
    starts, pairs = np.cumsum(sizes) - sizes, [np.empty((0, 3), dtype=np.int64)]
    for leader in range(_LEADERS):
        after = sizes - leader - 1
        starts, sizes, after = starts[after > 0], sizes[after > 0], after[after > 0]
        if not len(starts):
            break
        one = np.repeat(members[starts + leader], after)
        other = members[ranges(starts + leader + 1, after)]
        apart = component[one] != component[other]
        # Where all that come after are of the leader's component, the group is done.
        open_ = np.logical_or.reduceat(apart, np.cumsum(after) - after)
        starts, sizes = starts[open_], sizes[open_]
        pair = _similar(np.stack([one[apart], other[apart]], axis=1), signed, threshold)
        if len(pair):
            pairs.append(pair)
            component = components(component[pair[:, :2]], len(component))[component]
    return component, np.concatenate(pairs)


def _similar(pairs: Indices, signed: Signatures, threshold: float) -> Indices:
    """Return the pairs [n, 2] that are similar, and how many slots of their signatures are equal [n, 3]."""
    similarities = np.concatenate(
        [
            similarity(signed[part[:, 0]], signed[part[:, 1]])
            for part in np.array_split(pairs, max(1, len(pairs) // _PAIRS_AT_ONCE))
        ]
    )
    similar = similarities >= threshold
    equal = np.rint(similarities[similar] * signed.shape[1]).astype(np.int64)
    return np.column_stack([pairs[similar], equal])

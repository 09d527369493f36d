"""Records of one id, and which of them say what its label is: its seeds, or all of them where there is none."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


@dataclass(frozen=True)
class Equals:
    """Records, those of one id after one another; ids have the numbers 0, 1, ... in their order."""

    records: pa.Table
    number: NDArray[np.int64]  # [records], of their id
    starts: NDArray[np.int64]  # [ids], of their records
    deciding: NDArray[np.bool_]  # [records]
    contradictory: NDArray[np.bool_]  # [ids], whether the deciding records differ in their label


def equals(records: pa.Table, *preference: str) -> Equals:
    """Return records (id, unsafe, method and more) by id; those of an id seeds first, then by these columns."""
    records = records.append_column("generated", pc.not_equal(records["method"], "seed"))
    records = records.sort_by([(name, "ascending") for name in ("id", "generated", *preference)])
    unsafe, generated = (records[name].to_numpy() for name in ("unsafe", "generated"))
    number = numbered(records["id"])
    starts = np.flatnonzero(np.diff(number, prepend=-1))
    deciding = generated == generated[starts][number]
    of_label = [np.bincount(number[deciding & (unsafe == label)], minlength=len(starts)) > 0 for label in (True, False)]
    return Equals(records, number, starts, deciding, of_label[0] & of_label[1])


def numbered(ids: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return a number for each id: 0, 1, ... in the order of their first appearance."""
    return np.asarray(ids.combine_chunks().dictionary_encode().indices).astype(np.int64)

"""What a curation stage is: records in, for each one nothing or the reason it is dropped."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from guardrail.records import WRITTEN_BY_TRANSFORMS

CONTRAST = "contrast"  #: start of the methods that turn a text into its look-alike of the other label

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Drop:
    """Why a record is dropped; `evidence` is what shows it: the twin's id, the words, the number."""

    reason: str
    evidence: str


#: Judges a batch of records, any batch: None keeps the one at the same place. A batch has the columns of the record
#: schema, the record's number in the input (`row`, int64) and those of `guardrail.curation.facts`.
Judge = Callable[[pa.Table], list[Drop | None]]


class Survey(Protocol):
    """What a stage may learn of all records, which never come to the driver themselves.

    Functions run on the cluster: they and what they return must be picklable. What comes to the driver (all but what
    `written` leaves on disk) must be small: ids, labels, digests, numbers, or a sample of so many records.
    """

    def kept(self, columns: Sequence[str]) -> pa.Table:
        """Return these columns of the records that the stages so far kept, facts included, in the files' order."""
        ...

    def inputs(self, columns: Sequence[str]) -> pa.Table:
        """Return these columns of all records that curation was given; no facts."""
        ...

    def computed(self, function: Callable[[pa.Table], pa.Table], *, of_inputs: bool = False) -> pa.Table:
        """Apply a function to the kept records of each file, or to all; return its tables as one, in the files' order.

        Records have their facts in both.
        """
        ...

    def written(self, function: Callable[[pa.Table], pa.Table], *, of_inputs: bool = False) -> list[Path]:
        """Apply a function as `computed` does; return its tables' parquet files, in the files' order.

        They lie in a folder that all nodes share, until the stage is finished.
        """
        ...

    def each(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Apply a function to each item, one task for each; return the results in the items' order."""
        ...


class Stage(Protocol):
    """One stage.

    `name` is what ledger and funnel call it. `settings` is what its verdicts hang on beside the records, as JSON has
    it: a resumed run keeps the stage's output only if these are the same, and the files of the models they name.
    """

    name: str
    settings: Mapping[str, Any]

    def prepare(self, survey: Survey) -> Judge:
        """Return the judge; what it must know of all records is gathered here."""
        ...


def keep_all(batch: pa.Table) -> list[Drop | None]:
    """Judge nothing: the judge of a stage that finds there is nothing to judge."""
    return [None] * batch.num_rows


def seed_first(records: pa.Table) -> NDArray[np.int64]:
    """Return the places of records (method, id) in the order in which equals are preferred: seeds, then by id."""
    keys = pa.table({"generated": pc.not_equal(records["method"], "seed"), "id": records["id"]})
    order = pc.sort_indices(keys, sort_keys=[("generated", "ascending"), ("id", "ascending")])
    return np.asarray(order).astype(np.int64)


def are_attacks(records: pa.Table) -> NDArray[np.bool_]:
    """Return which records (method) an adversary made, or a transform: to look like another text, on purpose."""
    return np.asarray(pc.match_substring_regex(records["method"], f"^(rl$|{'|'.join(WRITTEN_BY_TRANSFORMS)})"))


def are_contrasts(records: pa.Table) -> NDArray[np.bool_]:
    """Return which records (method) were turned into their look-alike of the other label."""
    return np.asarray(pc.starts_with(records["method"], CONTRAST))


def are_trusted(records: pa.Table, sources: Sequence[str]) -> NDArray[np.bool_]:
    """Return which records (source) come from a source whose name starts as one of these."""
    found = np.zeros(len(records), dtype=bool)
    for prefix in sources:
        found |= np.asarray(pc.starts_with(records["source"], prefix))
    return found


def are_trusted_seeds(records: pa.Table, sources: Sequence[str]) -> NDArray[np.bool_]:
    """Return which records (method, source) are seeds that were labelled by hand, as `are_trusted`."""
    return np.asarray(pc.equal(records["method"], "seed")) & are_trusted(records, sources)


@dataclass(frozen=True)
class ByRow:
    """The judge of a stage that knows beforehand which records it drops; Arrow holds them: there may be very many.

    Args:
        drops: row, reason, evidence, in any order.
    """

    drops: pa.Table

    def __call__(self, batch: pa.Table) -> list[Drop | None]:
        """Return the verdicts on a batch."""
        places = pc.index_in(batch["row"], value_set=self.drops["row"].combine_chunks())
        found = self.drops.select(["reason", "evidence"]).take(places).to_pylist()
        return [None if drop["reason"] is None else Drop(**drop) for drop in found]

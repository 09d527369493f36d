"""What a curation stage is: records in, for each one nothing or the reason it is dropped."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from guardrail.records import Record


@dataclass(frozen=True)
class Drop:
    """Why a record is dropped; `evidence` is what shows it: the twin's id, the words, the number."""

    reason: str
    evidence: str


#: Judges a batch of records, any batch: None keeps the one at the same place. Records have their number in the input as
#: `row`, beside the columns of the schema.
Judge = Callable[[Sequence[Record]], list[Drop | None]]


#: Applies a function to every batch of the records, on the cluster, and yields the rows it returns, in any order. They
#: come to the driver: a digest or a label of each record, or the few seeds, never the records.
Survey = Callable[[Callable[[pa.Table], pa.Table]], Iterable[dict[str, Any]]]


class Stage(Protocol):
    """One stage; `name` is what ledger and funnel call it."""

    name: str

    def prepare(self, survey: Survey) -> Judge:
        """Return the judge; what it must know of all records is gathered here."""
        ...


def seed_first(record: Record) -> tuple[bool, str]:
    """Return the order in which equals are preferred: seeds, then the smallest id."""
    return record["method"] != "seed", record["id"]

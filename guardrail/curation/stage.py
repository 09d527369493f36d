"""What a curation stage is: records in, for each one nothing or the reason it is dropped."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa


@dataclass(frozen=True)
class Drop:
    """Why a record is dropped; `evidence` is what shows it: the twin's id, the words, the number."""

    reason: str
    evidence: str


#: Judges a batch of records, any batch: None keeps the one at the same place. A batch has the columns of the record
#: schema, the record's number in the input (`row`) and those of `guardrail.curation.facts`.
Judge = Callable[[pa.Table], list[Drop | None]]


class Survey(Protocol):
    """A few small columns of all records, for a stage that must know more than one batch.

    The rows come to the driver, in any order: ask for ids, labels and digests, or the few seeds, never the records.
    """

    def kept(self, columns: Sequence[str]) -> Iterable[dict[str, Any]]:
        """Yield these columns of the records that the stages so far kept, facts included."""
        ...

    def computed(self, function: Callable[[pa.Table], pa.Table]) -> Iterable[dict[str, Any]]:
        """Apply a function to every batch of the kept records, on the cluster, and yield the rows it returns."""
        ...

    def inputs(self, columns: Sequence[str]) -> Iterable[dict[str, Any]]:
        """Yield these columns of all records that curation was given."""
        ...


class Stage(Protocol):
    """One stage.

    `name` is what ledger and funnel call it. `settings` is what its verdicts hang on beside the records, as JSON has
    it: a resumed run keeps the stage's output only if these are the same.
    """

    name: str
    settings: Mapping[str, Any]

    def prepare(self, survey: Survey) -> Judge:
        """Return the judge; what it must know of all records is gathered here."""
        ...


def seed_first(row: Mapping[str, Any]) -> tuple[bool, str]:
    """Return the order in which equals are preferred: seeds, then the smallest id."""
    return row["method"] != "seed", row["id"]

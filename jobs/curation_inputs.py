"""What curation is given: record files, files of labelled rows, public sets by name, and what rayguard ships."""

import itertools
import operator
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from guardrail.curation.intake import SET_ASIDE
from guardrail.dataset_registry import registry
from guardrail.datasets import registered_rows
from guardrail.records import SCHEMA, Record, check_records, to_table, write_table, write_tables
from guardrail.rows import did_you_mean
from guardrail.seeds import LabelledRow, embedded_seeds, embedded_texts, labelled_rows
from guardrail.text import digest

EMBEDDED = {"embedded": embedded_seeds, "embedded-texts": embedded_texts}

_RECORDS_AT_ONCE, _CHARACTERS_AT_ONCE = 10_000, 100_000_000


@dataclass
class CurationInput:
    """A record file: the user's own, or one that was made of what is none, a row at a time.

    Attributes:
        name: as the user gave it.
        path: of the records.
        numbers: of the rows that they were made of; None: the file is the user's.
        problems: number and reason of the rows that made no record.
    """

    name: str
    path: Path
    numbers: "array[int] | None" = None  # many, where a file is larger than memory
    problems: list[tuple[int, str]] = field(default_factory=list)

    @classmethod
    def of(cls, name: str, made: Path, data_dir: Path | None, at_most: int | None, seed: int) -> Self:
        """Return an input; what is no record file yet is made one first.

        Args:
            name: a file, a public set, or one of `EMBEDDED`.
            made: where that is written.
            data_dir: local copies of public sets.
            at_most: records of a label that are drawn of a public set; None: all.
            seed: random seed of the lot.

        Raises:
            ValueError: the file or set cannot be read or has no records, or there is none of the name; or no row of the
                file is right: of one that calls a column otherwise, say.
        """
        path = Path(name)
        if path.suffix.lower() in (".csv", ".jsonl", ".json"):
            rows = labelled_rows(path)
        elif name in EMBEDDED:
            rows = (LabelledRow(number, "", record) for number, record in enumerate(EMBEDDED[name](), 1))
        elif path.exists():
            check_records(path)
            if not pq.read_metadata(path).num_rows:
                raise ValueError(f"{name} has no records")
            return cls(name, path)
        elif name not in registry():
            known = sorted([*EMBEDDED, *(each for each, item in registry().items() if item.use != "eval")])
            nearest = did_you_mean(name, known)
            raise ValueError(f"{name} is no file, and no set to train on{nearest} Known: {', '.join(known)}")
        elif registry()[name].use == "eval":
            raise ValueError(f"{name} is a set to evaluate on, which no guard is trained on; give it to --evaluation")
        else:
            rows = registered_rows(name, data_dir)
            if at_most is not None:
                rows = evenly_drawn(rows, at_most, seed)
        result = cls(name, made, array("q"))
        write_tables(result._tables(rows), SCHEMA, made)
        if result.problems and not result.numbers:
            result.remove()
            number, reason = result.problems[0]
            raise ValueError(f"{name}: none of {len(result.problems)} rows makes a record; row {number}: {reason}")
        return result

    def _tables(self, rows: Iterable[LabelledRow]) -> Iterator[pa.Table]:
        """Yield the records of rows, some at a time, and note where they are, and what is wrong with the others."""
        assert self.numbers is not None
        waiting: list[Record] = []
        size = 0
        for row in rows:
            if row.record is None:
                self.problems.append((row.number, "; ".join(row.problems)))
                continue
            self.numbers.append(row.number)
            waiting.append(row.record)
            size += len(row.record["text"]) + len(row.record["response"] or "")
            if len(waiting) == _RECORDS_AT_ONCE or size > _CHARACTERS_AT_ONCE:
                yield to_table(waiting)
                waiting, size = [], 0
        if waiting:
            yield to_table(waiting)

    def tell_of_set_aside(self, set_aside: Path) -> None:
        """Name rows that were set aside as the user knows them, and add those that made no record.

        Args:
            set_aside: parquet file of `SET_ASIDE`.
        """
        if self.numbers is None:
            return
        told = pq.read_table(set_aside).to_pylist()
        for row in told:
            if row["file"] == str(self.path):
                row |= {"file": self.name, "row": self.numbers[row["row"] - 1]}
        told += [{"file": self.name, "row": number, "reason": reason, "id": None} for number, reason in self.problems]
        write_table(pa.Table.from_pylist(told, SET_ASIDE), set_aside)

    def remove(self) -> None:
        """Remove the file of records, if it is not the user's."""
        if self.numbers is not None:
            self.path.unlink(missing_ok=True)


def evenly_drawn(rows: Iterable[LabelledRow], most: int, seed: int) -> Iterator[LabelledRow]:
    """Yield at most `most` records of each label, drawn by lot, of its categories as equally many as there are.

    Rows that made no record come first. No more than twice `most` of a kind are held at a time.
    """
    kinds: dict[tuple[bool, tuple[str, ...]], list[tuple[str, LabelledRow]]] = {}
    for row in rows:
        if row.record is None:
            yield row
            continue
        kind = kinds.setdefault((row.record["unsafe"], tuple(row.record["categories"] or ())), [])
        kind.append((digest(str(seed), row.record["id"]), row))
        if len(kind) > 2 * most:
            kind.sort(key=operator.itemgetter(0))
            del kind[most:]
    for label in (True, False):
        ordered = [sorted(kinds[kind], key=operator.itemgetter(0)) for kind in sorted(kinds) if kind[0] is label]
        turns = itertools.zip_longest(*ordered)
        yield from (row for _, row in itertools.islice((each for turn in turns for each in turn if each), most))

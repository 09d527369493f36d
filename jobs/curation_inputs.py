"""What curation is given: record files, files of labelled rows, public sets by name, and what rayguard ships."""

import itertools
import operator
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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
        problems: the rows that made no record, as set_aside.parquet tells of them.
    """

    name: str
    path: Path
    numbers: "array[int] | None" = None  # many, where a file is larger than memory
    problems: pa.Table = field(default_factory=SET_ASIDE.empty_table)

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
        if result.problems.num_rows and not result.numbers:
            result.remove()
            first = result.problems.slice(0, 1).to_pylist()[0]
            none = f"{name}: none of {result.problems.num_rows} rows makes a record"
            raise ValueError(f"{none}; row {first['row']}: {first['reason']}")
        return result

    def _tables(self, rows: Iterable[LabelledRow]) -> Iterator[pa.Table]:
        """Yield the records of rows, some at a time, and note where they are, and what is wrong with the others."""
        assert self.numbers is not None
        waiting: list[Record] = []
        wrong: list[dict[str, Any]] = []
        size = 0
        for row in rows:
            if row.record is None:
                wrong.append({"file": self.name, "row": row.number, "reason": "; ".join(row.problems)})
                if len(wrong) == _RECORDS_AT_ONCE:
                    self._note(wrong)
                    wrong = []
                continue
            self.numbers.append(row.number)
            waiting.append(row.record)
            size += len(row.record["text"]) + len(row.record["response"] or "")
            if len(waiting) == _RECORDS_AT_ONCE or size > _CHARACTERS_AT_ONCE:
                yield to_table(waiting)
                waiting, size = [], 0
        self._note(wrong)
        if waiting:
            yield to_table(waiting)

    def _note(self, problems: Sequence[dict[str, Any]]) -> None:
        self.problems = pa.concat_tables([self.problems, pa.Table.from_pylist(problems, SET_ASIDE)])

    def remove(self) -> None:
        """Remove the file of records, if it is not the user's."""
        if self.numbers is not None:
            self.path.unlink(missing_ok=True)


def tell_of_set_aside(inputs: Sequence[CurationInput], set_aside: Path) -> None:
    """Name rows that were set aside as the user knows them, and add those that made no record.

    Args:
        inputs: all that were curated.
        set_aside: parquet file of `SET_ASIDE`.
    """
    told = pq.read_table(set_aside)
    files, numbers = told["file"], told["row"].to_numpy().copy()
    for each in inputs:
        if each.numbers is not None:
            own = pc.equal(told["file"], str(each.path))
            places = np.flatnonzero(own)
            numbers[places] = np.asarray(each.numbers)[numbers[places] - 1]
            files = pc.if_else(own, each.name, files)
    named = pa.table([files, pa.array(numbers), told["reason"], told["id"]], schema=SET_ASIDE)
    write_table(pa.concat_tables([named, *(each.problems for each in inputs)]), set_aside)


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

"""Where records enter: rows that fit the record schema get a number, the others are set aside with the reason.

Nothing of a row that is set aside is quoted but its id: it may be anything.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from guardrail.curation.folders import INPUT_SCHEMA
from guardrail.records import SCHEMA, check_records, write_table
from guardrail.taxonomy import CATEGORIES, with_parents

#: Rows that were set aside: file, number of the row in it (from 1), why, and the row's id if it has one.
SET_ASIDE = pa.schema([("file", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("id", pa.string())])
LONGEST = 1_000_000  # bytes of a text or response: a hundred thousand words are no request

_ROWS_AT_ONCE = 1_000  # at most
_BYTES_PER_FILE = 100_000_000
_DECIDING = ["id", "unsafe", "method"]
_WRONG = {pa.bool_(): "is neither true nor false", pa.int32(): "is no whole number"}


def take_in(paths: Sequence[Path], folder: Path, set_aside: Path, rows_per_file: int = 20_000) -> int:
    """Copy the rows that fit to numbered files in `folder`, tell of the others in `set_aside`; return how many fit.

    A row fits if its values have the types of the record schema or can be cast to them, its text is neither empty nor
    longer than `LONGEST`, its strings are UTF-8, and its categories are known and none if it is benign; they get their
    parents. Rows of one id that people labelled differently do not fit, nor does what grew from them; what else was
    generated is the stages' business.

    Args:
        paths: parquet files of records; they are read twice, and never as a whole.
        folder: gets files of records with a column `row`, which counts over all files.
        set_aside: parquet file of `SET_ASIDE` to write.
        rows_per_file: records of a file, at most: what one task has in memory.

    Raises:
        ValueError: a file cannot be read, lacks a column, or has one of a type that no value of it can be cast from.
    """
    for path in paths:
        check_records(path)
    aside = [SET_ASIDE.empty_table()]
    count = 0
    for table in _packed(_fitting(paths, aside), rows_per_file):
        rows = pa.array(range(count, count + table.num_rows), pa.int64())
        numbered = table.append_column(INPUT_SCHEMA.field("row"), rows)
        pq.write_table(numbered, folder / f"{count:012d}.parquet")
        count += table.num_rows
    write_table(pa.concat_tables(aside), set_aside)
    return count


def _fitting(paths: Sequence[Path], aside: list[pa.Table]) -> Iterator[pa.Table]:
    """Yield the rows that fit, and add the others to `aside`."""
    twice = contradictory(paths)
    for path in paths:
        before = 0
        for table in _batches(path, SCHEMA.names):
            with _named(path):
                fitting, others = checked(table, twice)
            file = pa.array([str(path)] * others.num_rows, pa.string())
            row = pc.add(others["place"], before + 1)
            aside.append(pa.table([file, row, others["reason"], others["id"]], schema=SET_ASIDE))
            before += table.num_rows
            yield fitting


def _packed(tables: Iterable[pa.Table], rows_per_file: int) -> Iterator[pa.Table]:
    """Yield the same rows in tables of `rows_per_file`, or of fewer that are as large as a task should hold."""
    waiting: list[pa.Table] = []
    for table in tables:
        while table.num_rows:
            left = _BYTES_PER_FILE - sum(each.nbytes for each in waiting)
            room = rows_per_file - sum(each.num_rows for each in waiting)
            room = min(room, left * table.num_rows // max(1, table.nbytes))
            if room < 1 and waiting:
                yield pa.concat_tables(waiting)
                waiting = []
                continue
            waiting.append(table.slice(0, max(1, room)))
            table = table.slice(max(1, room))
    if waiting:
        yield pa.concat_tables(waiting)


def checked(table: pa.Table, twice: pa.Array | None = None) -> tuple[pa.Table, pa.Table]:
    """Return the rows that fit, as the record schema has them, and of the others place, reason and id.

    Args:
        table: has the columns of the record schema, of any type; `place` counts its rows from 0.
        twice: ids whose rows, and what grew from them, do not fit, because they have two labels.

    Raises:
        ValueError: a column is of a type that cannot be cast to the schema's.
    """
    problems = _Problems(table.num_rows)
    columns = {field.name: _fitted(table[field.name], field, problems) for field in SCHEMA}
    ids = columns["id"]
    if twice is not None:
        problems.add(pc.is_in(ids, value_set=twice), "contradictory labels")
        problems.add(pc.is_in(columns["seed_id"], value_set=twice), "its seed has contradictory labels")
    for name in ("text", "response"):
        problems.add(pc.greater(pc.binary_length(columns[name]), LONGEST), f"{name} over {LONGEST:,} bytes")
    problems.add(pc.equal(pc.utf8_trim_whitespace(columns["text"]), ""), "empty text")
    categories = columns["categories"]
    unknown = pc.invert(pc.is_in(categories.flatten(), value_set=pa.array(CATEGORIES)))
    owners = pc.list_parent_indices(categories).filter(unknown)
    problems.add(pc.is_in(pa.array(range(table.num_rows), pa.int64()), value_set=owners), "unknown category")
    harmful = pc.greater(pc.list_value_length(categories), 0)
    problems.add(pc.and_(harmful, pc.invert(columns["unsafe"])), "categories of a benign record")
    places = np.flatnonzero(problems.found)
    others = pa.table(
        {"place": places, "reason": pa.array(problems.reasons[places], pa.string()), "id": ids.take(pa.array(places))}
    )
    return _with_parents(pa.table(columns, schema=SCHEMA).filter(pa.array(~problems.found))), others


def _with_parents(records: pa.Table) -> pa.Table:
    """Return records whose categories have their parents beside them: other makers of records may give just the one."""
    place = SCHEMA.get_field_index("categories")
    categories = [each and with_parents(each) for each in records["categories"].to_pylist()]
    return records.set_column(place, SCHEMA.field(place), pa.array(categories, SCHEMA.field(place).type))


def contradictory(paths: Sequence[Path]) -> pa.Array:
    """Return the ids under which people's own records have both labels."""
    seeds = [pa.table({"id": pa.array([], pa.string()), "unsafe": pa.array([], pa.bool_())})]
    for path in paths:
        for table in _batches(path, _DECIDING):
            ignored = _Problems(table.num_rows)
            with _named(path):
                columns = {name: _fitted(table[name], SCHEMA.field(name), ignored) for name in _DECIDING}
            people = (pc.field("method") == "seed") & pc.field("unsafe").is_valid()
            seeds.append(pa.table(columns).filter(people).group_by(["id", "unsafe"]).aggregate([]))
    counts = pa.concat_tables(seeds).group_by("id").aggregate([("unsafe", "count_distinct")])
    return counts.filter(pc.field("unsafe_count_distinct") > 1)["id"].combine_chunks()


class _Problems:
    """Which of `count` rows not to take, and the first reason for each."""

    def __init__(self, count: int) -> None:
        self.found = np.zeros(count, dtype=bool)
        self.reasons = np.full(count, None, dtype=object)

    def add(self, mask: pa.Array | NDArray[np.bool_], reason: str) -> None:
        """Give a reason to the rows of a mask, in which null is false, unless they have one."""
        if isinstance(mask, pa.Array):
            mask = mask.fill_null(False).to_numpy(zero_copy_only=False)
        self.reasons[mask & ~self.found] = reason
        self.found |= mask


def _fitted(column: pa.ChunkedArray, field: pa.Field, problems: _Problems) -> pa.Array:
    """Return a column in the type of its field, null where a value cannot be."""
    values = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if not field.nullable:
        problems.add(values.is_null(), f"{field.name} is missing")
    wrong = f"{field.name} {_WRONG.get(field.type, 'is not UTF-8')}"
    if pa.types.is_boolean(field.type) and (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        # Arrow takes any number but 0 for true.
        label = pc.or_(pc.equal(values, 0), pc.equal(values, 1))
        problems.add(pc.invert(label), wrong)
        values = pc.if_else(label, values, None)
    result = pa.concat_arrays(list(_cast(values, field)))
    problems.add(pc.and_(result.is_null(), values.is_valid()), wrong)
    return result


def _cast(values: pa.Array, field: pa.Field) -> Iterator[pa.Array]:
    """Yield the values in the type of a field, in parts; null for those that cannot be."""
    try:
        cast = values.cast(field.type)
        cast.validate(full=True)  # a string column may hold any bytes
        yield cast
    except pa.ArrowNotImplementedError as error:
        raise ValueError(f"column {field.name!r}: {error}") from error
    except pa.ArrowInvalid:
        if len(values) == 1:
            yield pa.nulls(1, field.type)
            return
        # Taken, not sliced: of a sliced list all values are looked at.
        for half in np.array_split(np.arange(len(values)), 2):
            yield from _cast(values.take(pa.array(half)), field)


def _batches(path: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    with _named(path):
        file = pq.ParquetFile(path)
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        widest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
        rows = max(1, min(_ROWS_AT_ONCE, _BYTES_PER_FILE // max(1, widest)))
        for batch in file.iter_batches(rows, columns=list(columns)):
            yield pa.Table.from_batches([batch])


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"cannot read records from {path}: {error}") from error

"""Where records enter: rows that fit the record schema get a number, the others are set aside with the reason.

Nothing of a row that is set aside is quoted but its id: it may be anything.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from guardrail.curation.folders import INPUT_SCHEMA
from guardrail.curation.stage import are_trusted
from guardrail.records import SCHEMA, check_records, record_id, write_table
from guardrail.taxonomy import CATEGORIES, with_parents

#: Rows that were set aside: file, number of the row in it (from 1), why, and the row's id if it has one.
SET_ASIDE = pa.schema([("file", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("id", pa.string())])
LONGEST = 1_000_000  # bytes of a text or response: a hundred thousand words are no request
INTAKE = "intake"  #: what the funnel calls it

_ROWS_AT_ONCE = 1_000  # at most
_BYTES_PER_FILE = 100_000_000
_TOLD = 10  # reasons that are counted one by one: some name a value or a source, of which there may be any number
_DECIDING = ["id", "unsafe", "source", "method"]
_LABEL = pa.schema([("id", pa.string()), ("unsafe", pa.bool_()), ("source", pa.string())])
_WRONG = {pa.bool_(): "is neither true nor false", pa.int32(): "is no whole number"}


def take_in(
    paths: Sequence[Path],
    folder: Path,
    set_aside: Path,
    rows_per_file: int = 20_000,
    trusted_sources: Sequence[str] = (),
) -> int:
    """Copy the rows that fit to numbered files in `folder`, tell of the others in `set_aside`; return how many fit.

    A row fits if its values have the types of the record schema or can be cast to them, its text is neither empty nor
    longer than `LONGEST`, its strings are UTF-8, its id is that of text and response (all else goes by ids), and its
    categories are known and none if it is benign; they get their parents. Rows of one id that people labelled
    differently do not fit, nor does what grew from them; where trusted sources give one of the labels, only rows of the
    other do not. What else was generated is the stages' business.

    Args:
        paths: parquet files of records; they are read twice, and never as a whole.
        folder: gets files of records with a column `row`, which counts over all files.
        set_aside: parquet file of `SET_ASIDE` to write.
        rows_per_file: records of a file, at most: what one task has in memory.
        trusted_sources: starts of sources whose labels outweigh others.

    Raises:
        ValueError: a file cannot be read, lacks a column, or has one of a type that no value of it can be cast from; or
            there are rows, and none fits.
    """
    for path in paths:
        check_records(path)
    aside = [SET_ASIDE.empty_table()]
    count = 0
    for table in _packed(_fitting(paths, trusted_sources, aside), rows_per_file):
        rows = pa.array(range(count, count + table.num_rows), pa.int64())
        numbered = table.append_column(INPUT_SCHEMA.field("row"), rows)
        pq.write_table(numbered, folder / f"{count:012d}.parquet")
        count += table.num_rows
    others = pa.concat_tables(aside)
    if others.num_rows and not count:
        first = others.slice(0, 1).to_pylist()[0]
        reason = f"{first['file']}, row {first['row']}: {first['reason']}"
        raise ValueError(f"none of {others.num_rows} rows fits a record; {reason}")
    write_table(others, set_aside)
    return count


def intake_entry(set_aside: Path, taken_in: int) -> dict[str, Any]:
    """Return the funnel's first entry: the rows that were read, how many were taken in, and why the others were not.

    Args:
        set_aside: parquet file of `SET_ASIDE`.
        taken_in: how many rows fit.
    """
    counts = pq.read_table(set_aside, columns=["reason"])["reason"].value_counts().to_pylist()
    counts.sort(key=lambda each: (-each["counts"], each["values"]))
    reasons = {each["values"]: each["counts"] for each in counts[:_TOLD]}
    aside = sum(each["counts"] for each in counts)
    if others := aside - sum(reasons.values()):
        reasons[f"{len(counts) - _TOLD} other reasons"] = others
    return {"stage": INTAKE, "in": taken_in + aside, "kept": taken_in, "reasons": reasons}


def _fitting(paths: Sequence[Path], trusted_sources: Sequence[str], aside: list[pa.Table]) -> Iterator[pa.Table]:
    """Yield the rows that fit, and add the others to `aside`."""
    twice = contradictory(paths, trusted_sources)
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


def checked(table: pa.Table, twice: pa.Table | None = None) -> tuple[pa.Table, pa.Table]:
    """Return the rows that fit, as the record schema has them, and of the others place, reason and id.

    Args:
        table: has the columns of the record schema, of any type; `place` counts its rows from 0.
        twice: ids that have two labels, as `contradictory` returns them.

    Raises:
        ValueError: a column is of a type that cannot be cast to the schema's.
    """
    problems = _Problems(table.num_rows)
    columns = {field.name: _fitted(table[field.name], field, problems) for field in SCHEMA}
    ids = columns["id"]
    for name in ("text", "response"):
        problems.add(pc.greater(pc.binary_length(columns[name]), LONGEST), f"{name} over {LONGEST:,} bytes")
    problems.add(pc.equal(pc.utf8_trim_whitespace(columns["text"]), ""), "empty text")
    misnamed = ~problems.found
    misnamed[misnamed] = _misnamed(pa.table(columns).filter(pa.array(misnamed)))
    problems.add(misnamed, "id is not that of its text and response")
    if twice is not None and len(twice):
        undecided = twice.filter(pc.field("unsafe").is_null())["id"].combine_chunks()
        problems.add(pc.is_in(ids, value_set=undecided), "contradictory labels")
        problems.add(pc.is_in(columns["seed_id"], value_set=undecided), "its seed has contradictory labels")
        right = twice.take(pc.index_in(ids, value_set=twice["id"].combine_chunks()))
        reasons = [f"labelled otherwise by {source}" for source in right["source"].to_pylist()]
        problems.add(pc.not_equal(columns["unsafe"], right["unsafe"].combine_chunks()), reasons)
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


def _misnamed(rows: pa.Table) -> NDArray[np.bool_]:
    """Return which rows (id, text, response) have an id that is not that of their text and response."""
    values = (rows[name].to_pylist() for name in ("id", "text", "response"))
    wrong = [own != record_id(text, response) for own, text, response in zip(*values, strict=True)]
    return np.array(wrong, dtype=bool)


def _with_parents(records: pa.Table) -> pa.Table:
    """Return records whose categories have their parents beside them: other makers of records may give just the one."""
    place = SCHEMA.get_field_index("categories")
    categories = [each and with_parents(each) for each in records["categories"].to_pylist()]
    return records.set_column(place, SCHEMA.field(place), pa.array(categories, SCHEMA.field(place).type))


def contradictory(paths: Sequence[Path], trusted_sources: Sequence[str] = ()) -> pa.Table:
    """Return the ids under which people's own records have both labels: id, unsafe, source.

    The latter two are null, unless trusted sources give one label only: then they are that label and who gives it.
    """
    labels = _labels(paths, trusted_sources)
    if len(twice := _with_both(labels)):  # of few ids, if any: all texts need not be read twice
        labels = _labels(paths, trusted_sources, twice)
        twice = _with_both(labels)
    decisive = labels.filter(pc.field("source").is_valid() & pc.is_in(pc.field("id"), twice))
    given: dict[str, dict[bool, str]] = {each: {} for each in twice.to_pylist()}
    for row in decisive.sort_by("source").to_pylist():
        given[row["id"]].setdefault(row["unsafe"], row["source"])
    rows = []
    for each, by in given.items():
        unsafe, source = next(iter(by.items())) if len(by) == 1 else (None, None)
        rows.append({"id": each, "unsafe": unsafe, "source": source})
    return pa.Table.from_pylist(rows, _LABEL)


def _labels(paths: Sequence[Path], trusted_sources: Sequence[str], of: pa.Array | None = None) -> pa.Table:
    """Return the labels that people's records give to ids: id, unsafe, source (null, unless it is trusted).

    Args:
        paths, trusted_sources: as `contradictory` has them.
        of: the ids that are asked for, where records count only if they have their text's; None: all, as rows say.
    """
    names = _DECIDING if of is None else [*_DECIDING, "text", "response"]
    seeds = [_LABEL.empty_table()]
    for path in paths:
        for table in _batches(path, names):
            ignored = _Problems(table.num_rows)
            with _named(path):
                columns = {name: _fitted(table[name], SCHEMA.field(name), ignored) for name in names}
            people = (pc.field("method") == "seed") & pc.field("unsafe").is_valid() & pc.field("source").is_valid()
            records = pa.table(columns).filter(people)
            if of is not None:
                records = records.filter(pc.field("text").is_valid() & pc.is_in(pc.field("id"), of))
                records = records.filter(pa.array(~_misnamed(records)))
            trusted = pa.array(are_trusted(records, trusted_sources))
            source = pc.if_else(trusted, records["source"], None)
            found = pa.table([records["id"], records["unsafe"], source], schema=_LABEL)
            seeds.append(found.group_by(_LABEL.names).aggregate([]))
    return pa.concat_tables(seeds)


def _with_both(labels: pa.Table) -> pa.Array:
    """Return the ids that have both labels."""
    counts = labels.group_by("id").aggregate([("unsafe", "count_distinct")])
    return counts.filter(pc.field("unsafe_count_distinct") > 1)["id"].combine_chunks()


class _Problems:
    """Which of `count` rows not to take, and the first reason for each."""

    def __init__(self, count: int) -> None:
        self.found = np.zeros(count, dtype=bool)
        self.reasons = np.full(count, None, dtype=object)

    def add(self, mask: pa.Array | NDArray[np.bool_], reason: str | list[str]) -> None:
        """Give a reason, or each its own, to the rows of a mask, in which null is false, unless they have one."""
        if isinstance(mask, pa.Array):
            mask = mask.fill_null(False).to_numpy(zero_copy_only=False)
        self.reasons = np.where(mask & ~self.found, reason, self.reasons)
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

"""The record: one labelled request (with a response, perhaps), and the single schema every stage reads and writes.

Knows nothing of Ray: a record is a plain dict that fits `SCHEMA`, a stage's data is a pyarrow table or a parquet file.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from guardrail.taxonomy import with_parents
from guardrail.text import canonical, digest

Record = dict[str, Any]

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # digest of canonical text and response
        pa.field("text", pa.string(), nullable=False),  # the request, as it was written
        pa.field("response", pa.string()),  # the answer, where the answer is what is judged
        pa.field("unsafe", pa.bool_(), nullable=False),
        pa.field("categories", pa.list_(pa.string())),  # null: unknown, masked in the loss; empty: none applies
        pa.field("language", pa.string()),
        pa.field("source", pa.string(), nullable=False),  # data set or seed topic it comes from
        pa.field("licence", pa.string()),
        pa.field("parent_id", pa.string()),  # the record it was made from
        pa.field("seed_id", pa.string(), nullable=False),  # the first ancestor; its own id for a seed
        pa.field("method", pa.string(), nullable=False),  # seed, a synthesis strategy, transform:<name>, rl, rl:<style>
        pa.field("round", pa.int32(), nullable=False),
        pa.field("attacker_version", pa.string()),
        pa.field("guard_version", pa.string()),
        pa.field("scores", pa.map_(pa.string(), pa.float64())),
    ]
)
_SCORES = SCHEMA.field("scores")
#: Starts of the methods whose texts a transform has written, of attackers' disguised styles, too.
WRITTEN_BY_TRANSFORMS = ("transform:", "rl:")


def record_id(text: str, response: str | None = None) -> str:
    """Return the stable id of a text (and response): equal where only case, spacing or invisibles differ."""
    return digest(canonical(text), "" if response is None else canonical(response))


def make_record(
    text: str,
    *,
    unsafe: bool,
    source: str,
    categories: Iterable[str] | None = None,
    response: str | None = None,
    parent: Mapping[str, Any] | None = None,
    method: str = "seed",
    **fields: Any,
) -> Record:
    """Return a record that fits `SCHEMA`; lineage and licence come from `parent` where there is one.

    Raises:
        ValueError: the text is empty, a category is unknown, or a benign record names a harm category.
    """
    if not text.strip():
        raise ValueError("empty text")
    keys = None if categories is None else with_parents(categories)
    if keys and not unsafe:
        raise ValueError(f"a benign record cannot have harm categories ({', '.join(keys)})")
    own_id = record_id(text, response)
    inherited = parent or {}
    record: Record = {
        "id": own_id,
        "text": text,
        "response": response,
        "unsafe": unsafe,
        "categories": keys,
        "language": inherited.get("language"),
        "source": source,
        "licence": inherited.get("licence"),
        "parent_id": inherited.get("id"),
        "seed_id": inherited.get("seed_id") or own_id,
        "method": method,
        "round": 0,
        "attacker_version": None,
        "guard_version": None,
        "scores": {},
    }
    unknown = fields.keys() - record.keys()
    if unknown:
        raise ValueError(f"not fields of a record: {', '.join(sorted(unknown))}")
    record.update(fields)
    return record


def to_table(records: Iterable[Record]) -> pa.Table:
    """Return the records as one table of `SCHEMA`."""
    rows = [{**r, "scores": list((r.get("scores") or {}).items())} for r in records]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def from_table(table: pa.Table) -> list[Record]:
    """Return a table of `SCHEMA` as records; `scores` becomes a dict."""
    return [{**row, "scores": dict(row["scores"] or ())} for row in table.select(SCHEMA.names).to_pylist()]


def write_table(table: pa.Table, path: Path) -> None:
    """Write parquet so that `path` is either the old file or the whole new one, whatever kills the writer."""
    write_tables([table], table.schema, path)


def write_tables(tables: Iterable[pa.Table], schema: pa.Schema, path: Path) -> None:
    """Write tables to one parquet file, one after the other, as `write_table` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # Texts and vectors repeat little, and nobody asks for their smallest and largest.
        with pq.ParquetWriter(partial, schema, use_dictionary=False, write_statistics=False) as writer:
            for table in tables:
                writer.write_table(table)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_records(records: Iterable[Record], path: Path) -> None:
    """Write records to `path` as parquet, atomically."""
    write_table(to_table(records), path)


def read_records(path: Path) -> list[Record]:
    """Read records from parquet.

    Raises:
        ValueError: the file is missing, unreadable, or lacks a column of the schema.
    """
    check_records(path)
    with _unreadable_named(path):
        return from_table(pq.read_table(path))


def record_tables(path: Path) -> Iterator[pa.Table]:
    """Yield a record file in parts, with all columns it has; `scores` is as in the schema.

    Raises:
        ValueError: the file is unreadable, or its scores are not numbers by name.
    """
    with _unreadable_named(path):
        for batch in pq.ParquetFile(path).iter_batches():
            table = pa.Table.from_batches([batch])
            table.validate(full=True)  # a string column may hold any bytes
            scores = table["scores"].cast(_SCORES.type)
            yield table.set_column(table.schema.get_field_index("scores"), _SCORES, scores)


def check_records(path: Path) -> None:
    """Raise ValueError, naming the file and what is wrong with it, unless it has the columns of the record schema."""
    with _unreadable_named(path):
        schema = pq.read_schema(path)
    missing = [name for name in SCHEMA.names if name not in schema.names]
    if missing:
        raise ValueError(f"{path} is no record file: it lacks the columns {', '.join(missing)}")
    if twice := [name for name in SCHEMA.names if schema.names.count(name) > 1]:
        raise ValueError(f"{path} has two columns named {twice[0]!r}")


@contextlib.contextmanager
def _unreadable_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"cannot read records from {path}: {error}") from error

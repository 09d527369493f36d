"""Where curation stands on disk: the numbered input, one folder of judged records for each stage, and what they are of.

A folder's manifest is written last and holds a key: a digest of all that its records hang on (inputs, settings, the
stages before). Only a folder whose manifest has the expected key is ever read.
"""

import itertools
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.dataset
import pyarrow.parquet as pq

from guardrail.curation.facts import FACTS
from guardrail.curation.stage import Drop, Judge
from guardrail.records import SCHEMA

ROWS_PER_FILE = 20_000  # of the numbered input: Ray Data reads files in parallel, and hardly parts of them
ROWS_IN_MEMORY = 50_000  # of the sorted output

INPUT_SCHEMA = pa.schema([*SCHEMA, pa.field("row", pa.int64())])
_VERDICT = (pa.field("reason", pa.string()), pa.field("evidence", pa.string()))
_FACTED = pa.schema([*INPUT_SCHEMA, *FACTS])
JUDGED_SCHEMA = pa.schema([*_FACTED, *_VERDICT])
_MANIFEST = "manifest.json"


class Folder:
    """A folder of parquet files of one schema, with a manifest."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema = path, schema

    def manifest(self, key: str) -> dict[str, Any] | None:
        """Return the manifest of a folder that was finished under this key, else None."""
        try:
            found = json.loads((self.path / _MANIFEST).read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return found if found["key"] == key else None

    def start(self) -> None:
        """Begin the folder anew."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)

    def finish(self, key: str, **entry: Any) -> dict[str, Any]:
        """Write the manifest and return it."""
        manifest = {"key": key, **entry}
        write_json(self.path / _MANIFEST, manifest)
        return manifest

    def files(self) -> list[str]:
        """Return the files that hold rows."""
        return [str(file) for file in sorted(self.path.glob("*.parquet")) if pq.read_metadata(file).num_rows]

    def rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield these columns of all kept rows."""
        for batch in self._kept().to_batches(columns=list(columns)):
            yield from batch.to_pylist()

    def verdicts(self) -> dict[str | None, int]:
        """Return how many rows were dropped for which reason; None: kept."""
        counts = self._dataset().to_table(columns=["reason"])["reason"].value_counts().to_pylist()
        return {entry["values"]: entry["counts"] for entry in counts}

    def dropped(self, columns: Sequence[str]) -> pa.Table:
        """Return these columns of the dropped rows."""
        return self._dataset().to_table(columns=list(columns), filter=pa.compute.field("reason").is_valid())

    def write_kept(self, target: Path) -> int:
        """Write the kept records to one file, sorted by id, and return their number; whole or not at all.

        Ids must be unique. Only `ROWS_IN_MEMORY` records are held at a time.
        """
        kept, field = self._kept(), pa.compute.field("id")
        ids = sorted(row["id"] for row in self.rows(["id"]))
        bounds = ids[::ROWS_IN_MEMORY]
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            with pq.ParquetWriter(partial, SCHEMA) as writer:
                for lower, upper in itertools.pairwise([*bounds, None]):
                    part = field >= lower if upper is None else (field >= lower) & (field < upper)
                    table = kept.filter(part).to_table(columns=SCHEMA.names)
                    writer.write_table(table.sort_by("id").cast(SCHEMA))
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
        return len(ids)

    def _dataset(self) -> pa.dataset.Dataset:
        files = self.files()
        if not files:
            return pa.dataset.dataset(self.schema.empty_table())
        return pa.dataset.dataset(files, schema=self.schema)

    def _kept(self) -> pa.dataset.Dataset:
        if "reason" not in self.schema.names:
            return self._dataset()
        return self._dataset().filter(pa.compute.field("reason").is_null())


def write_numbered(paths: Sequence[Path], folder: Path) -> int:
    """Copy the records of all files, with their number: equal rows cannot be told apart without. Return how many.

    Raises:
        ValueError: a column has values that its type in the record schema cannot hold, or lacks some it must have.
    """
    count = 0
    for path in paths:
        for batch in pq.ParquetFile(path).iter_batches(ROWS_PER_FILE, columns=SCHEMA.names):
            numbers = pa.array(range(count, count + batch.num_rows), type=pa.int64())
            table = _cast(path, pa.Table.from_batches([batch])).append_column(INPUT_SCHEMA.field("row"), numbers)
            pq.write_table(table, folder / f"{count:012d}.parquet")
            count += batch.num_rows
    return count


def _cast(path: Path, table: pa.Table) -> pa.Table:
    columns = []
    for field in SCHEMA:
        try:
            column = table[field.name].cast(field.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(f"{path}, column {field.name!r}: {error}") from error
        if not field.nullable and column.null_count:
            raise ValueError(f"{path}, column {field.name!r}: {column.null_count} of {len(column)} values are missing")
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def only_kept(batch: pa.Table) -> pa.Table:
    """Return what a judge sees of a batch of judged records."""
    return batch.filter(pa.compute.is_null(batch["reason"])).select(_FACTED.names).cast(_FACTED)


def with_verdicts(judge: Judge, batch: pa.Table) -> pa.Table:
    """Return a batch with a judge's verdicts."""
    drops: list[Drop | None] = judge(batch)
    verdicts = ([drop and drop.reason for drop in drops], [drop and drop.evidence for drop in drops])
    for field, values in zip(_VERDICT, verdicts, strict=True):
        batch = batch.append_column(field, pa.array(values, type=field.type))
    return batch


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that `path` is either the old file or the whole new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(partial, path)

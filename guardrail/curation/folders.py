"""Where curation stands on disk: the numbered input, facts about it, and for each stage its verdicts.

Records are written once; a stage adds one file of verdicts for each file of records. A folder's manifest is written
last and holds a key: a digest of all that the folder hangs on (inputs, settings, the stages before). Only a folder
whose manifest has the expected key is ever read.
"""

import itertools
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq

from guardrail.curation.config import CurationConfig
from guardrail.curation.facts import facts
from guardrail.curation.stage import Judge
from guardrail.files import write_text
from guardrail.records import SCHEMA

ROWS_IN_MEMORY, _BYTES_IN_MEMORY = 50_000, 2**28  # of the sorted output
_ROWS_PER_GROUP = 1_000  # of its files, which are read group by group

INPUT_SCHEMA = pa.schema([*SCHEMA, pa.field("row", pa.int64())])
VERDICTS = pa.schema([("row", pa.int64()), ("reason", pa.string()), ("evidence", pa.string())])
_MANIFEST = "manifest.json"


class Folder:
    """A folder of parquet files with a manifest."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def manifest(self, key: str) -> dict[str, Any] | None:
        """Return the manifest of a folder that was finished under this key, else None."""
        try:
            found = json.loads((self.path / _MANIFEST).read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return found if found["key"] == key else None

    def start(self) -> None:
        """Begin the folder anew."""
        self.remove()
        self.scratch.mkdir(parents=True)

    def remove(self) -> None:
        """Remove the folder, its manifest first: with that one the rest would be taken for whole."""
        (self.path / _MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)

    def finish(self, key: str, **entry: Any) -> dict[str, Any]:
        """Remove what was scratch, write the manifest and return it."""
        shutil.rmtree(self.scratch)
        manifest = {"key": key, **entry}
        write_json(self.path / _MANIFEST, manifest)
        return manifest

    @property
    def scratch(self) -> Path:
        """Where to put files that are not needed once the folder is finished."""
        return self.path / "scratch"


@dataclass(frozen=True)
class Part:
    """One file of the numbered input with its facts, row for row, and the last stage's verdicts on what was left."""

    records: Path
    facts: Path
    verdicts: Path | None = None

    def kept(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return these columns of the records that were kept so far, or all with the facts."""
        records, known = pq.ParquetFile(self.records), pq.ParquetFile(self.facts)
        wanted = [*records.schema_arrow.names, *known.schema_arrow.names] if columns is None else list(columns)
        table = records.read([name for name in records.schema_arrow.names if name in (*wanted, "row")])
        for name in known.schema_arrow.names:
            if name in wanted:
                table = table.append_column(name, known.read([name])[name])
        if self.verdicts is not None:
            verdicts = pq.ParquetFile(self.verdicts).read(["row", "reason"])
            left = verdicts["row"].filter(pc.is_null(verdicts["reason"]))
            table = table.filter(pc.is_in(table["row"], value_set=left.combine_chunks()))
        return table.select(wanted)

    def dropped(self, columns: Sequence[str]) -> pa.Table:
        """Return these columns, reason and evidence of the records that the last stage dropped."""
        verdicts = pq.ParquetFile(self.verdicts).read().filter(pc.field("reason").is_valid())
        records = pq.ParquetFile(self.records).read([*columns, "row"])
        places = pc.index_in(verdicts["row"], value_set=records["row"].combine_chunks())
        table = records.select(list(columns)).take(places)
        return table.append_column("reason", verdicts["reason"]).append_column("evidence", verdicts["evidence"])


def orphans(parts: Sequence[Part]) -> int:
    """Return how many generated records, of those that were kept, grew from seeds that are not among the inputs."""
    if not parts:
        return 0
    kept = pa.concat_tables(part.kept(["method", "seed_id"]) for part in parts)
    asked = kept.filter(pc.field("method") != "seed")["seed_id"]
    ids = pa.concat_tables(pq.ParquetFile(part.records).read(["id"]) for part in parts)["id"]
    return int(np.count_nonzero(pc.invert(pc.is_in(asked, value_set=ids.combine_chunks()))))


def write_facts(config: CurationConfig, part: Part) -> None:
    """Write the facts of a part's records."""
    pq.write_table(facts(config, pq.ParquetFile(part.records).read(["text", "response", "method"])), part.facts)


def write_verdicts(judge: Judge, folder: Path, part: Part) -> dict[str | None, int]:
    """Judge the records that are left of a part, and return how many were dropped for which reason; None: kept."""
    batch = part.kept()
    drops = judge(batch)
    verdicts = {
        "row": batch["row"],
        "reason": [drop and drop.reason for drop in drops],
        "evidence": [drop and drop.evidence for drop in drops],
    }
    table = pa.table(verdicts, schema=VERDICTS)
    pq.write_table(table, folder / part.records.name)
    return {entry["values"]: entry["counts"] for entry in table["reason"].value_counts().to_pylist()}


def write_sorted(folder: Path, part: Part) -> Path:
    """Write the kept records of a part by id, in groups that `merge` can read one by one, and return the file."""
    path = folder / part.records.name
    pq.write_table(part.kept(SCHEMA.names).sort_by("id"), path, row_group_size=_ROWS_PER_GROUP)
    return path


def merge(paths: Sequence[Path], target: Path) -> None:
    """Write the records of files that `write_sorted` wrote to one file, by id; whole or not at all.

    Ids must be unique. Only about `ROWS_IN_MEMORY` records are held at a time, and of long ones fewer.
    """
    files = [str(path) for path in paths]
    records = pa.dataset.dataset(files or SCHEMA.empty_table(), schema=SCHEMA if files else None)
    field = pc.field("id")
    ids = records.to_table(columns=["id"])["id"]
    groups = [each.row_group(i) for each in map(pq.read_metadata, files) for i in range(each.num_row_groups)]
    fits = _BYTES_IN_MEMORY * len(ids) // max(1, sum(group.total_byte_size for group in groups))
    bounds = ids.take(pc.sort_indices(ids)[:: max(1, min(ROWS_IN_MEMORY, fits))]).to_pylist()
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with pq.ParquetWriter(partial, SCHEMA) as writer:
            for lower, upper in itertools.pairwise([*bounds, None]):
                inside = field >= lower if upper is None else (field >= lower) & (field < upper)
                table = records.to_table(columns=SCHEMA.names, filter=inside)
                writer.write_table(table.sort_by("id").cast(SCHEMA))
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def remove_partials(folder: Path, names: Sequence[str]) -> None:
    """Remove what processes that were killed left of files of these names, which are written whole or not at all.

    No other process may be writing them.
    """
    for name in names:
        for partial in folder.glob(f".{name}.[0-9]*"):  # the writer's process id
            partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that `path` is either the old file or the whole new one."""
    write_text(path, json.dumps(value, indent=2) + "\n")

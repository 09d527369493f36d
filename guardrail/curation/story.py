"""One record's story: where it comes from, which stages it passed, where and why it ended, and what of its twin.

Read from what `curate` wrote, without the texts.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

_LINEAGE = ["id", "parent_id", "seed_id", "source", "method", "unsafe"]
_ID = re.compile(r"\b[0-9a-f]{16}\b")

#: A row of kept.parquet or ledger.parquet; one of the latter has stage, reason and evidence too.
Row = dict[str, Any]


def story(record_id: str, folder: Path) -> list[str]:
    """Return the lines of a record's story.

    Args:
        record_id: of one that was kept, dropped or set aside.
        folder: what `curate` wrote to.

    Raises:
        ValueError: the folder lacks a file, or nothing is known of the id.
    """
    try:
        stages = [entry["stage"] for entry in json.loads((folder / "funnel.json").read_text())]
        lines = list(_told(record_id, _Curated(folder), stages))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is not what curation wrote: {error}") from error
    if not lines:
        raise ValueError(f"no record {record_id!r} was kept, dropped or set aside in {folder}")
    return lines


class _Curated:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def rows(self, column: str, value: str) -> list[Row]:
        """Return what was kept and dropped where a column has a value."""
        kept = self._read("kept", _LINEAGE, column, value)
        return kept + self._read("ledger", [*_LINEAGE, "stage", "reason", "evidence"], column, value)

    def set_aside(self, record_id: str) -> list[Row]:
        """Return the rows of an id that did not fit."""
        return self._read("set_aside", ["file", "row", "reason"], "id", record_id)

    def _read(self, name: str, columns: list[str], column: str, value: str) -> list[Row]:
        filters = [(column, "==", value)]
        return pq.read_table(self.folder / f"{name}.parquet", columns=columns, filters=filters).to_pylist()


def _told(record_id: str, curated: _Curated, stages: list[str]) -> Iterator[str]:
    for row in curated.set_aside(record_id):
        yield f"{record_id}: set aside on the way in, {row['file']} row {row['row']}: {row['reason']}"
    rows = curated.rows("id", record_id)
    for row in rows:
        yield f"{record_id}: {_fate(row)}"
        yield f"  {'unsafe' if row['unsafe'] else 'safe'}, {row['method']}, from {row['source']}"
        stage = row.get("stage")
        passed = stages[: stages.index(stage)] if stage else stages
        yield f"  passed: {', '.join(passed)}"
        yield from _twins(row, curated)
    yield from _ancestors(rows, curated)
    children = curated.rows("parent_id", record_id) if rows else []
    if children:
        kept = sum("stage" not in child for child in children)
        yield f"made from it: {len(children)}, of which {kept} kept"
        for child in children:
            yield f"  {child['id']} ({child['method']}): {_fate(child)}"


def _twins(row: Row, curated: _Curated) -> Iterator[str]:
    """Follow the records that a verdict names, each to the one it gave way to."""
    told = {row["id"]}
    while found := next((each for each in _ID.findall(row.get("evidence") or "") if each not in told), None):
        told.add(found)
        twins = curated.rows("id", found)
        for twin in twins:
            yield f"  {found}: {_fate(twin)}"
        if not twins:
            break
        row = twins[0]


def _ancestors(rows: list[Row], curated: _Curated) -> Iterator[str]:
    told: set[str] = set()
    while rows and (parent := rows[0]["parent_id"]) is not None and parent not in told:
        told.add(parent)
        rows = curated.rows("id", parent)
        yield f"made from {parent}: " + ("; ".join(map(_fate, rows)) or "not among the records")


def _fate(row: Row) -> str:
    if "stage" not in row:
        return "kept"
    evidence = f" ({row['evidence']})" if row["evidence"] else ""
    return f"dropped by {row['stage']}: {row['reason']}{evidence}"

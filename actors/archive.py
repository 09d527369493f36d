"""The archive of successful attacks: one bounded cell for each harm category and style, the most novel ones kept.

A cell that is full forgets the member that is closest to another one, so that what stays covers what was found
(MAP-Elites, arXiv 1504.04909, with distance to the cell in the place of fitness).
"""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from guardrail.records import Record, write_table

Cell = tuple[str, str]
BENIGN = "benign"


def category_of(goal: Record) -> str:
    """Return the cell's category of a goal: its most specific harm category; "benign", or "unsafe" where unknown."""
    if not goal["unsafe"]:
        return BENIGN
    return goal["categories"][-1] if goal["categories"] else "unsafe"


@dataclasses.dataclass(frozen=True)
class Find:
    """A success: its record's id, its cell's category and style, its text and L2-normalised embedding [d]."""

    id: str
    category: str
    style: str
    text: str
    embedding: np.ndarray


class Archive:
    """Finds by cell, at most `per_cell` in each."""

    def __init__(self, per_cell: int) -> None:
        self.per_cell = per_cell
        self.cells: dict[Cell, list[Find]] = {}

    def __len__(self) -> int:
        return sum(map(len, self.cells.values()))

    def add(self, finds: Iterable[Find]) -> int:
        """Add finds; return how many of them stay. One that is there already, or is closest to others, does not."""
        before = {find.id for cell in self.cells.values() for find in cell}
        added = set()
        for find in finds:
            cell = self.cells.setdefault((find.category, find.style), [])
            if find.id in before or find.id in added:
                continue
            cell.append(find)
            added.add(find.id)
            if len(cell) > self.per_cell:
                forgotten = cell.pop(_most_crowded(np.stack([each.embedding for each in cell])))
                added.discard(forgotten.id)
        return len(added)

    def embeddings(self) -> np.ndarray:
        """Return the embeddings of all finds, float32 [n, d]; [0, 0] of none."""
        listed = [find.embedding for cell in self.cells.values() for find in cell]
        return np.stack(listed) if listed else np.zeros((0, 0), dtype=np.float32)

    def coverage(self, categories: Sequence[str], styles: Sequence[str]) -> float:
        """Return the share of cells that hold something, in [0, 1]."""
        filled = sum(bool(self.cells.get((category, style))) for category in categories for style in styles)
        return filled / max(1, len(categories) * len(styles))

    def save(self, path: Path) -> None:
        """Write the archive as parquet, whole or not at all."""
        rows = [
            {**dataclasses.asdict(find), "embedding": find.embedding.tolist()}
            for cell in self.cells.values()
            for find in cell
        ]
        write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), path)

    @classmethod
    def load(cls, path: Path, per_cell: int) -> "Archive":
        """Read an archive that `save` wrote."""
        archive = cls(per_cell)
        for row in pq.read_table(path, schema=_SCHEMA).to_pylist():
            find = Find(**{**row, "embedding": np.array(row["embedding"], dtype=np.float32)})
            archive.cells.setdefault((find.category, find.style), []).append(find)
        return archive


_SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in ("id", "category", "style", "text")),
        pa.field("embedding", pa.list_(pa.float32())),
    ]
)


def _most_crowded(embeddings: np.ndarray) -> int:
    """Return the index of the one that is closest to another; of such a pair the later one."""
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = similarity.max(axis=1)
    return int(np.flatnonzero(nearest >= nearest.max() - 1e-6)[-1])

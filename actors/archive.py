"""The archive of successful attacks: one bounded cell for each harm category and style, the most novel ones kept.

A cell that is full forgets the member that is closest to another one, so that what stays covers what was found
(MAP-Elites, arXiv 1504.04909, with distance to the cell in the place of fitness). It is read for novelty and coverage;
what is replayed against later guards is every success, kept here or not (`Rounds.stored_attacks`, jobs/rounds.py).
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actors.attempts import float_lists
from guardrail.records import Record, write_table

Cell = tuple[str, str]
BENIGN, UNKNOWN = "benign", "unsafe"


def category_of(goal: Record) -> str:
    """Return the cell's category of a goal: its most specific harm category; `BENIGN`, or `UNKNOWN`."""
    if not goal["unsafe"]:
        return BENIGN
    return goal["categories"][-1] if goal["categories"] else UNKNOWN


@dataclasses.dataclass(frozen=True)
class Find:
    """A success: its record's id, its cell's category and style, its text and L2-normalised embedding [d]."""

    id: str
    category: str
    style: str
    text: str
    embedding: np.ndarray


def finds_of(successes: pa.Table) -> Iterator[Find]:
    """Yield successes, a table of `ATTEMPTS`, as finds."""
    for row in successes.to_pylist():
        embedding = np.array(row["embedding"], dtype=np.float32)
        yield Find(row["id"], category_of(row), row["style"], row["text"], embedding)


class Archive:
    """Finds by cell, at most `per_cell` in each."""

    def __init__(self, per_cell: int) -> None:
        self.per_cell = per_cell
        self.cells: dict[Cell, list[Find]] = {}

    def __len__(self) -> int:
        return sum(map(len, self.cells.values()))

    def add(self, finds: Iterable[Find]) -> None:
        """Add finds that are not there yet; a cell that becomes too full forgets those that are closest to others."""
        known = {find.id for cell in self.cells.values() for find in cell}
        touched: set[Cell] = set()
        for find in finds:
            if find.id not in known:
                known.add(find.id)
                self.cells.setdefault((find.category, find.style), []).append(find)
                touched.add((find.category, find.style))
        for name in touched:
            cell = self.cells[name]
            if len(cell) > self.per_cell:
                crowded = _most_crowded(np.stack([find.embedding for find in cell]), len(cell) - self.per_cell)
                self.cells[name] = [find for i, find in enumerate(cell) if i not in crowded]

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
        finds = [find for cell in self.cells.values() for find in cell]
        columns = [pa.array([getattr(find, name) for find in finds], pa.string()) for name in _SCHEMA.names[:-1]]
        write_table(pa.Table.from_arrays([*columns, float_lists(self.embeddings())], schema=_SCHEMA), path)

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


def _most_crowded(embeddings: np.ndarray, count: int) -> set[int]:
    """Return the indices of the `count` that, one after the other, are closest to another; of a pair the later one."""
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -np.inf)
    crowded: set[int] = set()
    for _ in range(count):
        nearest = similarity.max(axis=1)
        index = int(np.flatnonzero(nearest >= nearest.max() - 1e-6)[-1])
        crowded.add(index)
        similarity[index] = similarity[:, index] = -np.inf
    return crowded

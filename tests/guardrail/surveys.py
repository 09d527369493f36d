"""What unit tests show a curation stage instead of a cluster."""

import pickle
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from guardrail.curation.stage import R, T


class InMemory:
    """A survey of one table, as if its rows lay in files of `rows_per_file`.

    Functions are pickled on the way, as they are on the way to a worker.

    Args:
        table: the kept records, with `row` and facts.
        inputs: all records, where others than the kept ones matter.
        folder: where `written` writes; a new temporary folder if None.
        rows_per_file: how many rows a function sees at once; all if None.
    """

    def __init__(
        self,
        table: pa.Table,
        inputs: pa.Table | None = None,
        folder: Path | None = None,
        rows_per_file: int | None = None,
    ) -> None:
        self._table, self._inputs = table, table if inputs is None else inputs
        self._folder = folder
        self._size = rows_per_file or max(1, table.num_rows)
        self._writes = 0

    def kept(self, columns: Sequence[str]) -> pa.Table:
        return self._table.select(list(columns))

    def inputs(self, columns: Sequence[str]) -> pa.Table:
        return self._inputs.select(list(columns))

    def computed(self, function: Callable[[pa.Table], pa.Table]) -> pa.Table:
        return pa.concat_tables(self.each(function, self._files()))

    def written(self, function: Callable[[pa.Table], pa.Table]) -> list[Path]:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="survey-"))
        self._writes += 1
        paths = []
        for number, table in enumerate(self.each(function, self._files())):
            path = self._folder / f"{self._writes:02d}-{number:06d}.parquet"
            pq.write_table(table, path)
            paths.append(path)
        return paths

    def each(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        carried = pickle.loads(pickle.dumps(function))
        return [carried(item) for item in items]

    def _files(self) -> list[pa.Table]:
        starts = range(0, max(1, self._table.num_rows), self._size)
        return [self._table.slice(start, self._size) for start in starts]

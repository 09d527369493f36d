"""Reading what `Survey.written` left on disk."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray


def column_at(
    paths: Sequence[Path], name: str, places: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], pa.ChunkedArray]]:
    """Yield for each file which of some places lie in it, and the column there; no more is held than one file.

    Args:
        paths: of the files.
        name: of the column.
        places: of records, counted through all files [n].

    Yields:
        Indices of `places`, and the values at these.
    """
    ascending, start = np.argsort(places), 0
    for path in paths:
        column = pq.ParquetFile(path).read([name])[name]
        wanted = ascending[slice(*np.searchsorted(places, [start, start + len(column)], sorter=ascending))]
        yield wanted, column.take(pa.array(places[wanted] - start))
        start += len(column)

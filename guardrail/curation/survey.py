"""What a stage may learn of all records, on Ray: files are what is distributed, on Ray Data one block for each.

What workers call lies outside the pipeline's module: they need not import the models of all its stages.
"""

import dataclasses
import functools
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from guardrail.blocks import cluster_cpus, mapped
from guardrail.curation.folders import Part
from guardrail.curation.stage import R, T


@dataclass(frozen=True)
class ClusterSurvey:
    """A survey of the records that are left of these parts.

    Args:
        parts: at least one.
        scratch: an empty folder that all nodes share.
        num_cpus: what one task reserves.
    """

    parts: Sequence[Part]
    scratch: Path
    num_cpus: float

    def kept(self, columns: Sequence[str]) -> pa.Table:
        """Return these columns of the records that are left."""
        return pa.concat_tables(part.kept(columns) for part in self.parts)

    def inputs(self, columns: Sequence[str]) -> pa.Table:
        """Return these columns of all records."""
        return pa.concat_tables(pq.ParquetFile(part.records).read(list(columns)) for part in self.parts)

    def computed(self, function: Callable[[pa.Table], pa.Table], *, of_inputs: bool = False) -> pa.Table:
        """Apply a function to what is left of each part, or to all of it, and return its tables as one."""
        parts = self._shown(of_inputs)
        return pa.concat_tables(over_parts(functools.partial(_computed, function), parts, self.num_cpus))

    def written(self, function: Callable[[pa.Table], pa.Table], *, of_inputs: bool = False) -> list[Path]:
        """Apply a function to what is left of each part, or to all of it, and return its tables' files."""
        folder = self.scratch / str(len(list(self.scratch.iterdir())))
        folder.mkdir()
        return over_parts(functools.partial(_written, function, folder), self._shown(of_inputs), self.num_cpus)

    def each(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Apply a function to each item."""
        return _as_tasks(function, items, self.num_cpus)

    def _shown(self, of_inputs: bool) -> list[Part]:
        return [dataclasses.replace(part, verdicts=None) if of_inputs else part for part in self.parts]


def over_parts(function: Callable[[Part], R], parts: Sequence[Part], num_cpus: float) -> list[R]:
    """Apply a function to each part, in tasks that reserve `num_cpus`; return results in the parts' order.

    On Ray Data where there are more parts than CPUs. Results come to the driver: they must be small.
    """
    if len(parts) <= cluster_cpus():  # nothing waits for its turn, and a pipeline takes a second to begin
        return _as_tasks(function, parts, num_cpus)
    done = mapped(functools.partial(_of_block, function, parts), [{"number": i} for i in range(len(parts))], num_cpus)
    results = {row["number"]: row["result"] for row in done.iter_rows()}
    return [pickle.loads(results[number]) for number in range(len(parts))]


def _as_tasks(function: Callable[[T], R], items: Sequence[T], num_cpus: float) -> list[R]:
    shared = ray.put(function)  # once, with all the arrays that it holds
    task = ray.remote(num_cpus=num_cpus)(_called)
    return ray.get([task.remote(shared, item) for item in items])


def _of_block(function: Callable[[Part], R], parts: Sequence[Part], block: pa.Table) -> pa.Table:
    results = [pickle.dumps(function(parts[number])) for number in block["number"].to_pylist()]
    return block.append_column("result", pa.array(results, pa.large_binary()))


def _called(function: Callable[[T], R], item: T) -> R:
    return function(item)


def _computed(function: Callable[[pa.Table], pa.Table], part: Part) -> pa.Table:
    return function(part.kept())


def _written(function: Callable[[pa.Table], pa.Table], folder: Path, part: Part) -> Path:
    path = folder / part.records.name
    pq.write_table(function(part.kept()), path)
    return path

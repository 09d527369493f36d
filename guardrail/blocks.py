"""Work on Ray Data, a block for each item of a list.

Ray's own parquet readers list files and fetch their metadata in tasks that want a whole CPU, which may never be free,
and keep neither the order nor the schema of empty results: so a block names what is to be read, where the block is.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import ray
import ray.data


def cluster_cpus() -> int:
    """Return how many CPUs the cluster has, at least one."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def mapped(
    function: Callable[[pa.Table], pa.Table], items: Sequence[Mapping[str, Any]], num_cpus: float
) -> ray.data.Dataset:
    """Apply a function to a table of each item's one row, in tasks that reserve `num_cpus`; as many at once as CPUs."""
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    with ray.data.DataContext.current(context):
        blocks = ray.data.from_items([dict(item) for item in items], override_num_blocks=len(items))
        # No more workers than CPUs: Ray stops the others between two passes, and they would load their models again.
        return blocks.map_batches(
            function,
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=num_cpus,
            compute=ray.data.TaskPoolStrategy(size=min(len(items), cluster_cpus())),
        ).materialize()

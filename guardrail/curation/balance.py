"""The stage that keeps one kind of generated record from drowning the others."""

import math
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from guardrail.curation.config import CurationConfig
from guardrail.curation.stage import ByRow, Judge, Survey


class Balance:
    """Generated records past the limit of their cell: label, last category, method. Seeds are never dropped.

    All transforms are one method: each by itself has hardly more than a record in a cell, and would be the median.
    """

    name = "balance"

    def __init__(self, config: CurationConfig) -> None:
        self.config = config
        self.settings: Mapping[str, Any] = config.model_dump(include={"balance"})

    def prepare(self, survey: Survey) -> Judge:
        """Gather ids and cells, and choose who is over the limit."""
        records = survey.kept(["row", "id", "unsafe", "categories", "method"])
        return ByRow(surplus(records, self.config.balance))


def surplus(records: pa.Table, ratio: float) -> pa.Table:
    """Return row, reason and evidence of the records of each cell past `ratio` times the median cell's number.

    Ids are hashes, so that the smallest ones are as good as drawn by lot, whatever the order.

    Args:
        records: row, id, unsafe, categories, method.
        ratio: at least 1.
    """
    records = records.filter(pc.not_equal(records["method"], "seed"))
    label = pc.if_else(records["unsafe"], "unsafe", "safe")
    method = pc.replace_substring_regex(records["method"], pattern=":.*", replacement="")
    cells = pc.binary_join_element_wise(label, _last_or_dash(records["categories"]), method, "/")
    records = records.select(["row", "id"]).append_column("cell", cells).append_column("label", label)
    records = records.sort_by([("cell", "ascending"), ("id", "ascending")])
    names, sizes = np.unique(records["cell"].to_numpy(), return_counts=True)
    starts = np.cumsum(sizes) - sizes
    # Benign records have one cell for each method, and as many kinds as all the categories together: each label has a
    # median of its own.
    of_cell = records["label"].to_numpy()[starts]
    limits = np.zeros(len(names), dtype=np.int64)
    for value in np.unique(of_cell):
        limits[of_cell == value] = math.ceil(ratio * statistics.median(sizes[of_cell == value].tolist()))
    evidence = [f"{size} in {name}, limit {limit}" for name, size, limit in zip(names, sizes, limits, strict=True)]
    places = np.arange(len(records)) - np.repeat(starts, sizes)
    drops = pa.table(
        {
            "row": records["row"],
            "reason": pa.array(["surplus"] * len(records), pa.string()),
            "evidence": pa.array(evidence, pa.string()).take(pa.array(np.repeat(np.arange(len(names)), sizes))),
        }
    )
    return drops.filter(pa.array(places >= np.repeat(limits, sizes)))


def _last_or_dash(lists: pa.ChunkedArray) -> pa.Array:
    """Return the last element of each list, "-" where there is none."""
    lists = lists.combine_chunks()
    empty = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False) == 0
    last = pa.array(lists.offsets.to_numpy()[1:].astype(np.int64) - 1, mask=empty)
    return pc.fill_null(lists.values.take(last), "-")

"""The stage that keeps one kind of generated record from drowning the others."""

import functools
import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from guardrail.curation.config import CurationConfig
from guardrail.curation.stage import Drop, Judge, Survey


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
        rows = survey.kept(["id", "unsafe", "categories", "method"])
        return functools.partial(_judge_surplus, surplus(rows, self.config.balance))


def surplus(rows: Iterable[Mapping[str, Any]], ratio: float) -> dict[str, str]:
    """Return what to drop, id to evidence, so that no cell has more than `ratio` times the median cell's records.

    Ids are hashes, so that the smallest ones are as good as drawn by lot, whatever the order.
    """
    cells: dict[tuple[bool, str, str], list[str]] = {}
    for row in rows:
        if row["method"] != "seed":
            category = (row["categories"] or ["-"])[-1]
            method = row["method"].partition(":")[0]
            cells.setdefault((row["unsafe"], category, method), []).append(row["id"])
    if not cells:
        return {}
    # Benign records have one cell for each method, and as many kinds as all the categories together: each label has a
    # median of its own.
    limit = {
        label: math.ceil(ratio * statistics.median(sizes))
        for label in (True, False)
        if (sizes := [len(ids) for cell, ids in cells.items() if cell[0] is label])
    }
    return {
        record_id: f"{len(ids)} in {'unsafe' if cell[0] else 'safe'}/{cell[1]}/{cell[2]}, limit {limit[cell[0]]}"
        for cell, ids in cells.items()
        for record_id in sorted(ids)[limit[cell[0]] :]
    }


def _judge_surplus(over: Mapping[str, str], batch: pa.Table) -> list[Drop | None]:
    return [Drop("surplus", over[i]) if i in over else None for i in batch["id"].to_pylist()]

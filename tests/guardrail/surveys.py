"""What unit tests of curation share: records, and what a stage is shown of them instead of a cluster."""

import pickle
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from guardrail.curation import CurationConfig
from guardrail.curation.facts import facts, signatures, similarity
from guardrail.curation.stage import Drop, R, Stage, T
from guardrail.records import Record, make_record, to_table

CONFIG = CurationConfig()
BREAD = "How do I bake a loaf of rye bread at home without a stand mixer or a dutch oven"


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

    def computed(self, function: Callable[[pa.Table], pa.Table], *, of_inputs: bool = False) -> pa.Table:
        return pa.concat_tables(self.each(function, self._shown(of_inputs)))

    def written(self, function: Callable[[pa.Table], pa.Table], *, of_inputs: bool = False) -> list[Path]:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="survey-"))
        self._writes += 1
        paths = []
        for number, table in enumerate(self.each(function, self._shown(of_inputs))):
            path = self._folder / f"{self._writes:02d}-{number:06d}.parquet"
            pq.write_table(table, path)
            paths.append(path)
        return paths

    def each(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        carried = pickle.loads(pickle.dumps(function))
        return [carried(item) for item in items]

    def _shown(self, of_inputs: bool) -> list[pa.Table]:
        return self.files(self._inputs if of_inputs else self._table)

    def files(self, table: pa.Table) -> list[pa.Table]:
        """Return a table's rows as they lie in files."""
        return [table.slice(start, self._size) for start in range(0, max(1, table.num_rows), self._size)]


def seed(text: str, unsafe: bool = False, **fields: Any) -> Record:
    return make_record(text, unsafe=unsafe, source="mine", **fields)


def child(parent: Record, text: str, method: str = "paraphrase", **fields: Any) -> Record:
    fields = {"unsafe": parent["unsafe"], "categories": parent["categories"], **fields}
    return make_record(text, source="mine", parent=parent, method=method, **fields)


def numbered(records: Sequence[Record], config: CurationConfig = CONFIG) -> pa.Table:
    """The records as the pipeline hands them to a judge."""
    table = to_table(records).append_column("row", pa.array(range(len(records)), pa.int64()))
    return table.append_column("signature", facts(config, table)["signature"])


def verdicts(
    stage: Stage,
    records: Sequence[Record],
    inputs: Sequence[Record] | None = None,
    config: CurationConfig = CONFIG,
    **survey: Any,
) -> list[Drop | None]:
    """What a stage says of records, file by file; `inputs` and `survey` are those of `InMemory`."""
    table = numbered(records, config)
    shown = InMemory(table, inputs and numbered(inputs), **survey)
    judge = stage.prepare(shown)
    return [drop for part in shown.files(table) for drop in judge(part)]


def jaccard(one: str, two: str, config: CurationConfig = CONFIG) -> float:
    """The similarity of two texts by their signatures."""
    signed = signatures([one, two], config)
    return float(similarity(signed[:1], signed[1:])[0])

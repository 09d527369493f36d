import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.exceptions import RayActorError

from actors import batches
from guardrail.records import write_table
from tests.local_batches import run_here

POOL = {"engines": 1, "num_cpus": 1, "num_gpus": 0}


class Doubles:
    built = 0

    def __init__(self):
        Doubles.built += 1

    def __call__(self, paths):
        return batches.answer_files(paths, lambda batch, key: pa.table({key: [2 * n for n in batch["n"].to_pylist()]}))


def test_a_batch_is_answered_once_and_without_any_left_no_engine_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "run_actors", run_here)
    asked = [tmp_path / "asked" / f"{key}.parquet" for key in "ba"]
    for number, path in enumerate(asked):
        write_table(pa.table({"n": [number, 5]}), path)
    first, again = (batches.answer_batches(asked, tmp_path / "done", Doubles, (), **POOL) for _ in range(2))
    assert first == again and [pq.read_table(path).to_pydict() for path in first] == [{"b": [0, 10]}, {"a": [2, 10]}]
    assert Doubles.built == 1


def test_why_an_engine_cannot_start_is_said(tmp_path, monkeypatch):
    def dies(*_, **__):
        raise RayActorError(error_msg="an error raised in its creation task\nValueError: no such model")

    monkeypatch.setattr(batches, "run_actors", dies)
    with pytest.raises(ValueError, match="an engine cannot start: ValueError: no such model"):
        batches.answer_batches([tmp_path / "a.parquet"], tmp_path / "done", Doubles, (), **POOL)

"""Judging over Ray Data: records in, the vote of each judge on those that votes count for, as scores, out.

Curation's stage `judges` reads the scores. What people labelled (method "seed") it does not put to the vote: nobody is
asked about it.
"""

import itertools
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from actors.batches import answer_batches, answer_files, parts_folder
from actors.engine import memory_share
from actors.judges import Judge, JudgeConfig, Vote
from guardrail.curation.votes import JUDGE
from guardrail.records import SCHEMA, record_tables, write_table, write_tables
from guardrail.rows import text_problem
from guardrail.text import digest, joined


class JudgingConfig(BaseModel):
    """How the engines of judges are run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_size: int = Field(
        512, ge=1, description="records an engine is given at once; more keep it fuller, a killed run loses them"
    )
    engines: int = Field(1, ge=1, description="engines of a judge in parallel; judges take turns")
    kv_cache_gib: int = Field(1, ge=1, description="an engine's key-value cache on a CPU")
    gpu_memory: float = Field(0.9, gt=0, le=1, description="share of an accelerator's memory an engine takes")


class BatchJudge:
    """A Ray Data actor: one judge that votes on batches of texts."""

    def __init__(self, judge: dict[str, Any], config: dict[str, Any], num_gpus: float) -> None:
        settings = JudgingConfig.model_validate(config)
        self.judge = Judge(
            **judge,
            kv_cache_gib=settings.kv_cache_gib,
            gpu_memory=memory_share(settings.gpu_memory, num_gpus),
        )

    def __call__(self, paths: pa.Table) -> pa.Table:
        """Vote on batches of texts, from file to file."""
        return answer_files(paths, self.votes)

    def votes(self, batch: pa.Table, key: str) -> pa.Table:
        """Return the votes (column `vote`) on a batch of texts (column `text`), whatever its key."""
        return pa.table({"vote": pa.array(self.judge.votes(batch["text"].to_pylist()), pa.bool_())})


def judge_records(
    records: Path,
    judges: Sequence[JudgeConfig],
    config: JudgingConfig,
    output: Path,
    *,
    num_cpus: float,
    num_gpus: float,
) -> dict[str, Counter[Vote]]:
    """Write a record file anew, with a score of each judge: 1.0 for a vote of unsafe, 0.0 for safe, none for no vote.

    A judge's score takes the place of an earlier one of its name; order and all else stay. A call that is killed goes
    on where it was when it is made again; work lies in `OUTPUT.parts` until then: on a cluster, all nodes must share
    that folder.

    Returns:
        By the name of a judge, how many records it gave each vote.

    Args:
        records: parquet file of records.
        judges: who is asked, one after the other; no two of one name.
        config: how.
        output: parquet file to write, whole or not at all; it may be `records`.
        num_cpus, num_gpus: what one engine reserves.

    Raises:
        ValueError: the records cannot be read, one has no text, or an engine cannot start.
    """
    work = parts_folder(output)
    asked = _write_batches(_texts(records), config.batch_size, work / "asked")
    votes = {
        judge.name: _votes(
            answer_batches(
                asked,
                work / digest(judge.model_dump_json()),
                BatchJudge,
                (judge.model_dump(), config.model_dump(), num_gpus),
                engines=config.engines,
                num_cpus=num_cpus,
                num_gpus=num_gpus,
            )
        )
        for judge in judges
    }
    counts: dict[str, Counter[Vote]] = {name: Counter() for name in votes}
    schema = pq.read_schema(records)
    place = schema.get_field_index("scores")
    write_tables(_scored(records, votes, counts), schema.set(place, SCHEMA.field("scores")), output)
    shutil.rmtree(work, ignore_errors=True)
    return counts


def _to_judge(table: pa.Table) -> list[bool]:
    return [method != "seed" for method in table["method"].to_pylist()]


def _texts(records: Path) -> Iterator[str]:
    """Yield what judges are asked about: request and response, in the file's order."""
    row = 0
    for table in record_tables(records):
        columns = (table[name].to_pylist() for name in ("text", "response"))
        for text, response, wanted in zip(*columns, _to_judge(table), strict=True):
            row += 1
            if not wanted:
                continue
            if problem := text_problem(text):
                raise ValueError(f"{records}: row {row}: the text {problem}")
            yield joined(text, response)


def _write_batches(texts: Iterator[str], size: int, folder: Path) -> list[Path]:
    """Write each batch of texts to `folder/KEY.parquet`, and return the files."""
    paths: list[Path] = []
    while batch := list(itertools.islice(texts, size)):
        # The number tells two batches of the same texts apart: one file is not to be answered by two engines at once.
        paths.append(folder / f"{digest(str(len(paths)), *batch)}.parquet")
        write_table(pa.table({"text": batch}), paths[-1])
    return paths


def _votes(answered: Iterable[Path]) -> Iterator[Vote]:
    for path in answered:
        yield from pq.read_table(path)["vote"].to_pylist()


def _scored(
    records: Path, votes: Mapping[str, Iterator[Vote]], counts: Mapping[str, Counter[Vote]]
) -> Iterator[pa.Table]:
    """Yield the records with the scores of judges, and count their votes; both by the judges' names."""
    field = SCHEMA.field("scores")
    for table in record_tables(records):
        scores = table["scores"].to_pylist()
        for place, wanted in enumerate(_to_judge(table)):
            if not wanted:
                continue
            found = dict(scores[place] or ())
            for name, of_judge in votes.items():
                vote = next(of_judge)
                counts[name][vote] += 1
                found.pop(JUDGE + name, None)
                if vote is not None:
                    found[JUDGE + name] = float(vote)
            scores[place] = list(found.items())
        yield table.set_column(table.schema.get_field_index("scores"), field, pa.array(scores, field.type))

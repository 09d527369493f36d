"""Judging over Ray Data: records in, the vote of each judge on those that votes count for, as scores, out.

Curation's stage `judges` reads the scores. What people labelled (method "seed") it does not put to the vote: nobody is
asked about it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from actors.batches import answer_files
from actors.engine import memory_share
from actors.judges import Judge, JudgeConfig
from actors.record_scores import Scorer, Verdicts, score_records
from guardrail.curation.votes import JUDGE
from guardrail.models import model_state
from guardrail.reading import reading_of


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
        return answer_files(paths, self.scores)

    def scores(self, batch: pa.Table, key: str) -> pa.Table:
        """Return the votes on a batch (columns `text`, `response`), whatever its key: 1 unsafe, 0 safe, null none."""
        votes = self.judge.votes([*map(reading_of, batch["text"].to_pylist(), batch["response"].to_pylist())])
        return pa.table({"score": pa.array([None if vote is None else float(vote) for vote in votes], pa.float64())})


def judge_records(
    records: Path,
    judges: Sequence[JudgeConfig],
    config: JudgingConfig,
    output: Path,
    *,
    num_cpus: float,
    num_gpus: float,
) -> dict[str, Verdicts]:
    """Write a record file anew, with a score of each judge: 1.0 for a vote of unsafe, 0.0 for safe, none for no vote.

    As `actors.record_scores.score_records`.

    Returns:
        By the name of a judge, how many records it gave each vote.

    Args:
        records: parquet file of records.
        judges: who is asked, one after the other; no two of one name.
        config: how.
        output: parquet file to write.
        num_cpus, num_gpus: what one engine reserves.

    Raises:
        ValueError: the records cannot be read, one has no text, or an engine cannot start.
    """
    scorers = [
        Scorer(
            key=JUDGE + judge.name,
            actor=BatchJudge,
            arguments=(judge.model_dump(), config.model_dump(), num_gpus),
            identity=judge.model_dump_json() + model_state(judge.model),
        )
        for judge in judges
    ]
    verdicts = score_records(
        records,
        scorers,
        output,
        wanted=_are_not_seeds,
        batch_size=config.batch_size,
        engines=config.engines,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )
    return {key.removeprefix(JUDGE): counts for key, counts in verdicts.items()}


def _are_not_seeds(table: pa.Table) -> list[bool]:
    return [method != "seed" for method in table["method"].to_pylist()]

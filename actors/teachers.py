"""Teachers: guards or services whose probabilities of "unsafe" a guard in training learns from, beside the labels."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from actors.batches import answer_files
from actors.record_scores import Scorer, Verdicts, score_records
from guardrail.guard import GuardCard
from guardrail.reading import reading_of
from guardrail.remote import is_url, open_guard, unsafe_scores

TEACHER = "teacher:"  #: start of the keys of their scores


class TeachersConfig(BaseModel):
    """How teachers are asked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_size: int = Field(2048, ge=1, description="records a teacher is given at once; a killed run loses them")
    copies: int = Field(1, ge=1, description="copies of a teacher in parallel; teachers take turns")


class BatchTeacher:
    """A Ray Data actor: one guard, or what asks a service, that scores batches of texts."""

    def __init__(self, target: str) -> None:
        self.guard = open_guard(target)

    def __call__(self, paths: pa.Table) -> pa.Table:
        """Score batches of texts, from file to file."""
        return answer_files(paths, self.scores)

    def scores(self, batch: pa.Table, key: str) -> pa.Table:
        """Return the probability of "unsafe" of a batch (columns `text`, `response`); null where a text is refused."""
        columns = (batch[name].to_pylist() for name in ("text", "response"))
        found, _ = unsafe_scores(self.guard, [reading_of(*each) for each in zip(*columns, strict=True)])
        return pa.table({"score": pa.array(found, pa.float64(), mask=np.isnan(found))})


def ask_teachers(
    records: Path, teachers: Mapping[str, str], config: TeachersConfig, output: Path, *, num_cpus: float
) -> dict[str, Verdicts]:
    """Write a record file anew, with the score `teacher:NAME` of each teacher on every record.

    As `actors.record_scores.score_records`; a service that fails ends it, and what it has answered is kept.

    Returns:
        By the name of a teacher, how many records it scored 0.5 and more, less, or not at all.

    Args:
        records: parquet file of records.
        teachers: by name, guard directory or URL of a moderation endpoint.
        config: how they are asked.
        output: parquet file to write.
        num_cpus: what a copy of a teacher reserves.

    Raises:
        ValueError: the records cannot be read, one has no text, or a teacher is none.
    """
    opened = {name: target if is_url(target) else str(Path(target).resolve()) for name, target in teachers.items()}
    verdicts = score_records(
        records,
        [
            Scorer(key=TEACHER + name, actor=BatchTeacher, arguments=(target,), identity=_identity(target))
            for name, target in opened.items()
        ],
        output,
        wanted=lambda table: [True] * table.num_rows,
        batch_size=config.batch_size,
        engines=config.copies,
        num_cpus=num_cpus,
        num_gpus=0.0,
    )
    return {key.removeprefix(TEACHER): counts for key, counts in verdicts.items()}


def _identity(target: str) -> str:
    return target if is_url(target) else GuardCard.read(Path(target)).digest

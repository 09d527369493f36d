"""Teachers: guards or services whose probabilities of "unsafe" a guard in training learns from, beside the labels."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from actors.batches import answer_files
from actors.record_scores import Scorer, Verdicts, score_records
from guardrail.guard_card import GuardCard
from guardrail.reading import reading_of
from guardrail.targets import is_url, open_guard, unsafe_scores

TEACHER = "teacher:"  #: start of the keys of their scores


class TeachersConfig(BaseModel):
    """How teachers are asked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_size: int = Field(512, ge=1, description="records a teacher is given at once; a killed run loses them")
    copies: int = Field(1, ge=1, description="copies of a guard in parallel; teachers take turns")


class BatchTeacher:
    """A guard, as a Ray Data actor, or what asks a service: it scores batches of texts."""

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
    records: Path,
    teachers: Mapping[str, str],
    config: TeachersConfig,
    output: Path,
    *,
    num_cpus: float,
    num_gpus: float,
) -> dict[str, Verdicts]:
    """Write a record file anew, with the score `teacher:NAME` of each teacher on every record.

    As `actors.record_scores.score_records`; a service that fails ends it, and the batches it has answered are kept.

    Returns:
        By the name of a teacher, how many records it scored 0.5 and more, less, or not at all.

    Args:
        records: parquet file of records.
        teachers: by name, guard directory, which all nodes see, or URL of a service.
        config: how they are asked.
        output: parquet file to write.
        num_cpus, num_gpus: what a copy of a guard reserves.

    Raises:
        ValueError: the records cannot be read, one has no text, or a teacher is none.
        TargetError: a service fails.
    """
    verdicts = score_records(
        records,
        [
            _service(name, target) if is_url(target) else _guard(name, Path(target).resolve())
            for name, target in teachers.items()
        ],
        output,
        wanted=lambda table: [True] * table.num_rows,
        batch_size=config.batch_size,
        engines=config.copies,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )
    return {key.removeprefix(TEACHER): counts for key, counts in verdicts.items()}


def _service(name: str, url: str) -> Scorer:
    open_guard(url)  # refuses what is no URL of one
    return Scorer(key=TEACHER + name, actor=BatchTeacher, arguments=(url,), identity=url, is_service=True)


def _guard(name: str, directory: Path) -> Scorer:
    digest = GuardCard.read(directory).digest
    return Scorer(key=TEACHER + name, actor=BatchTeacher, arguments=(str(directory),), identity=digest)

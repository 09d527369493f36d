"""Train a guard on records, calibrated on a part of them that nothing it trained on grew from.

python jobs/train_guard.py --records kept.parquet --output guards/mine [--training.epochs 3 ...]
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from cluster.connect import connect
from cluster.resources import plan_for_cluster
from guardrail.records import read_records, write_records
from guardrail.seeds import TRAIN, VALIDATION, split_by_seed
from guardrail.training import TrainingConfig, fine_tune
from jobs.settings import JobSettings, load, save_beside
from jobs.terminal import reported_errors


class TrainGuardSettings(JobSettings):
    """Settings of the training."""

    records: Path = Field(description="parquet file of records")
    output: Path = Field(description="guard directory to write")
    version: str = Field("guard", description="name that guard.json gives")
    validation: float = Field(
        0.1, gt=0, lt=0.5, description="share of the seeds, with all that grew of them, held back"
    )
    training: TrainingConfig = TrainingConfig()


def main(arguments: Sequence[str]) -> None:
    """Write a guard directory."""
    settings = load(TrainGuardSettings, arguments, __doc__)
    data = settings.output.with_name(f".{settings.output.name}.records.parquet")
    with reported_errors():
        parts = split_by_seed(read_records(settings.records), validation=settings.validation, held_out=0.0)
        settings.output.parent.mkdir(parents=True, exist_ok=True)
        write_records(parts[TRAIN], data)
        try:
            with connect(address=settings.cluster.address):
                plan = plan_for_cluster(num_env_runners=0, num_learners=0, num_guard_workers=settings.training.workers)
                card = fine_tune(
                    settings.training,
                    data=data,
                    validation=parts[VALIDATION],
                    output=settings.output,
                    version=settings.version,
                    seed=settings.seed,
                    cpus_per_worker=plan.guard_worker_cpus,
                    gpus_per_worker=plan.guard_worker_gpus,
                )
        finally:
            data.unlink()
    save_beside(settings, settings.output)
    print(f"guard {card.version} (digest {card.digest}, threshold {card.thresholds['unsafe']:.3f}): {settings.output}")


if __name__ == "__main__":
    main(sys.argv[1:])

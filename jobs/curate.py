"""Curate records: what is kept, and for each dropped record the stage, the reason and the evidence.

python jobs/curate.py --input seeds.parquet grown.parquet beavertails-train --output curated/ [--evaluation xstest ...]
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from cluster.connect import connect
from cluster.resources import plan_for_cluster
from guardrail.curation import CurationConfig, curate
from guardrail.datasets import evaluation_texts, load_dataset_by_name, load_evaluations, registry
from guardrail.records import write_records
from jobs.settings import JobSettings, load, save_beside
from jobs.terminal import reported_errors, show_funnel


class CurateSettings(JobSettings):
    """Settings of the curation."""

    input: list[str] = Field(min_length=1, description="parquet files of records, and public sets to train on by name")
    output: Path = Field(description="folder to write kept.parquet, ledger.parquet and funnel.json to")
    evaluation: list[str] = Field([], description="evaluation sets to keep out, by name, or JSON-lines files")
    data_dir: Path | None = Field(None, description="local copies of public data sets")
    curation: CurationConfig = CurationConfig()


def _records_file(name: str, settings: CurateSettings) -> Path:
    """Return the file of an input; a public set's records are written beside the output first."""
    if name not in registry() or Path(name).exists():
        return Path(name)
    if registry()[name].use == "eval":
        raise ValueError(f"{name} is a set to evaluate on, which no guard is trained on; give it to --evaluation")
    records = load_dataset_by_name(name, settings.data_dir)
    path = settings.output.with_name(f"{settings.output.name}.{name}.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_records(records, path)
    return path


def main(arguments: Sequence[str]) -> None:
    """Write kept records and ledger."""
    settings = load(CurateSettings, arguments, __doc__)
    with reported_errors():
        evaluation = load_evaluations(settings.evaluation, settings.data_dir)
        inputs = [_records_file(name, settings) for name in settings.input]
        with connect(address=settings.cluster.address):
            plan = plan_for_cluster(num_env_runners=0, num_learners=0, num_guard_workers=0)
            report = curate(
                inputs,
                settings.output,
                settings.curation,
                evaluation=evaluation_texts(evaluation),
                num_cpus=plan.data_task_cpus,
            )
    save_beside(settings, settings.output)
    show_funnel(report)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Curate records: what is kept, and for each dropped record the stage, the reason and the evidence.

python jobs/curate.py --input seeds.parquet synthetic.parquet --output curated/ [--evaluation xstest FILE ...]
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from cluster.connect import connect
from cluster.resources import plan_for_cluster
from guardrail.curation import CurationConfig, curate
from guardrail.datasets import evaluation_texts, load_evaluations
from jobs.settings import JobSettings, load, save_beside
from jobs.terminal import reported_errors, show_funnel


class CurateSettings(JobSettings):
    """Settings of the curation."""

    input: list[Path] = Field(min_length=1, description="parquet files of records")
    output: Path = Field(description="folder to write kept.parquet, ledger.parquet and funnel.json to")
    evaluation: list[str] = Field([], description="evaluation sets to keep out, by name, or JSON-lines files")
    data_dir: Path | None = Field(None, description="local copies of public data sets")
    curation: CurationConfig = CurationConfig()


def main(arguments: Sequence[str]) -> None:
    """Write kept records and ledger."""
    settings = load(CurateSettings, arguments, __doc__)
    with reported_errors():
        evaluation = load_evaluations(settings.evaluation, settings.data_dir)
        with connect(address=settings.cluster.address):
            plan = plan_for_cluster(num_env_runners=0, num_learners=0, num_guard_workers=0)
            report = curate(
                settings.input,
                settings.output,
                settings.curation,
                evaluation=evaluation_texts(evaluation),
                num_cpus=plan.data_task_cpus,
            )
    save_beside(settings, settings.output)
    show_funnel(report)


if __name__ == "__main__":
    main(sys.argv[1:])

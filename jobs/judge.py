"""Ask judge models whether records are unsafe, and write their votes as scores, which curation's stage `judges` reads.

python jobs/judge.py --input grown.parquet --output judged.parquet \\
    --judges '[{"model": "Qwen/Qwen3Guard-Gen-8B", "format": "qwen3guard"}]' [--judging.engines 2 ...]

A judge reads request and response. Its score is named after the last part of its model's path
(judge:Qwen3Guard-Gen-8B): 1 for unsafe, 0 for safe, none where it refused or what it said is no verdict. A score of
that name that a record had before is replaced; all else, and the order, stays. Records with the method "seed" were
labelled by people and are not put to the vote: they pass through unjudged. The output may be the input.

Ctrl-C leaves a folder beside the output, from which the same command goes on.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, field_validator

from actors.judges import JudgeConfig
from actors.judging import JudgingConfig, judge_records
from cluster.connect import connect
from cluster.resources import plan_for_cluster
from guardrail.judge_formats import JUDGE_FORMATS
from guardrail.records import check_records
from jobs.settings import ClusterSettings, load, save_beside
from jobs.terminal import orderly_end


class JudgeSettings(ClusterSettings):
    """Settings of the judging."""

    input: Path = Field(description="parquet file of records")
    output: Path = Field(description="parquet file to write: the same records, with the judges' scores")
    judges: list[JudgeConfig] = Field(
        min_length=1,
        description=f"model, format ({', '.join(JUDGE_FORMATS)}) and max_tokens of each judge",
    )
    judging: JudgingConfig = JudgingConfig()

    @field_validator("judges")
    @classmethod
    def _scores_are_told_apart(cls, judges: list[JudgeConfig]) -> list[JudgeConfig]:
        names = [judge.name for judge in judges]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two of them would write the score judge:{twice[0]}; rename the folder of a model")
        return judges


def main(arguments: Sequence[str]) -> None:
    """Write records with the judges' scores."""
    settings = load(JudgeSettings, arguments, __doc__)
    with orderly_end(settings.output):
        check_records(settings.input)
        if settings.output.is_dir():
            raise ValueError(f"{settings.output} is a folder; --output takes the parquet file to write")
        with connect(address=settings.cluster.address):
            plan = plan_for_cluster(num_env_runners=settings.judging.engines, num_learners=0, num_guard_workers=0)
            counts = judge_records(
                settings.input,
                settings.judges,
                settings.judging,
                settings.output,
                num_cpus=plan.env_runner_cpus,
                num_gpus=plan.env_runner_gpus,
            )
    save_beside(settings, settings.output)
    for name, votes in counts.items():
        print(f"{name}: {votes.total()} asked, {votes[True]} unsafe, {votes[False]} safe, {votes[None]} no vote")


if __name__ == "__main__":
    main(sys.argv[1:])

"""Grow seeds into synthetic records, by the strategies of guardrail/synthesis/strategies.py.

python jobs/synthesize.py --output synthetic.parquet [--seeds FILE] [--synthesis.strategies '{"persona": 2}' ...]

Ctrl-C leaves a folder beside the output, from which the same command goes on.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from actors.synthesizer import synthesize
from cluster.connect import connect
from cluster.resources import plan_for_cluster
from guardrail.generable import generation_seeds
from guardrail.records import write_records
from guardrail.seeds import load_or_embedded
from guardrail.synthesis import SynthesisConfig
from jobs.settings import JobSettings, load, save_beside
from jobs.terminal import reported_errors


class SynthesizeSettings(JobSettings):
    """Settings of the synthesis."""

    output: Path = Field(description="parquet file to write: the synthetic records")
    seeds_output: Path | None = Field(None, description="parquet file to write: the seeds as records")
    seeds: Path | None = Field(None, description="CSV, JSONL or parquet of seeds; None: the embedded ones")
    synthesis: SynthesisConfig = SynthesisConfig()


def main(arguments: Sequence[str]) -> None:
    """Write synthetic records."""
    settings = load(SynthesizeSettings, arguments, __doc__)
    with reported_errors():
        seeds = load_or_embedded(settings.seeds)
        with connect(address=settings.cluster.address):
            plan = plan_for_cluster(num_env_runners=settings.synthesis.engines, num_learners=0, num_guard_workers=0)
            count, dropped = synthesize(
                seeds,
                settings.synthesis,
                settings.output,
                seed=settings.seed,
                num_cpus=plan.env_runner_cpus,
                num_gpus=plan.env_runner_gpus,
            )
        if settings.seeds_output:
            write_records(seeds, settings.seeds_output)
    save_beside(settings, settings.output)
    built_on = len(generation_seeds(seeds))
    reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(dropped.items()))
    print(
        f"{count} records grown from {built_on} seeds: {settings.output}"
        + (f"; {len(seeds) - built_on} seeds are never built on" if built_on < len(seeds) else "")
        + (f"; dropped: {reasons}" if reasons else "")
    )


if __name__ == "__main__":
    main(sys.argv[1:])

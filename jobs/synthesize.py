"""Grow seeds into synthetic records, by the strategies of guardrail/synthesis/strategies.py.

python jobs/synthesize.py --output synthetic.parquet [--seeds FILE] [--synthesis.strategies '{"persona": 2}' ...]

Ctrl-C leaves a folder beside the output, from which the same command goes on.
"""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field, field_validator
from rich.table import Table

from actors.synthesizer import synthesize, totals
from cluster.connect import connect
from cluster.resources import plan_for_cluster
from guardrail.generable import generation_seeds, without
from guardrail.records import write_records
from guardrail.seeds import load_or_embedded
from guardrail.synthesis import SynthesisConfig
from guardrail.taxonomy import check_category
from jobs.settings import ClusterSettings, SeedSettings, load, save_beside
from jobs.terminal import orderly_end, terminal


class SynthesizeSettings(ClusterSettings, SeedSettings):
    """Settings of the synthesis."""

    output: Path = Field(description="parquet file to write: the synthetic records")
    seeds_output: Path | None = Field(None, description="parquet file to write: the seeds as records")
    seeds: Path | None = Field(None, description="CSV, JSONL or parquet of seeds; None: the embedded ones")
    excluded_categories: list[str] = Field(
        [], description="harm categories of which no seed is built on, as curation.excluded_categories keeps none"
    )
    synthesis: SynthesisConfig = SynthesisConfig()

    @field_validator("excluded_categories")
    @classmethod
    def _categories_are_known(cls, keys: list[str]) -> list[str]:
        for key in keys:
            check_category(key)
        return keys


def _show(fates: Mapping[str, Counter[str]]) -> None:
    """Print what became of each strategy's answers in synthesis."""
    table = Table()
    for column in ("strategy", "answers", "kept", "dropped"):
        table.add_column(column, justify="right" if column in ("answers", "kept") else "left")
    for strategy, of_strategy in sorted(fates.items()):
        kept, dropped = totals({strategy: of_strategy})
        reasons = ", ".join(f"{reason} {count}" for reason, count in dropped.items())
        table.add_row(strategy, str(of_strategy.total()), str(kept), reasons)
    terminal().print(table)


def main(arguments: Sequence[str]) -> None:
    """Write synthetic records."""
    settings = load(SynthesizeSettings, arguments, __doc__)
    with orderly_end(settings.output):
        seeds = load_or_embedded(settings.seeds)
        if settings.seeds_output:  # now: that it cannot be written would else be found once all is generated
            write_records(seeds, settings.seeds_output)
        allowed = without(settings.excluded_categories, seeds)
        with connect(address=settings.cluster.address):
            plan = plan_for_cluster(num_env_runners=settings.synthesis.engines, num_learners=0, num_guard_workers=0)
            fates, tokens = synthesize(
                allowed,
                settings.synthesis,
                settings.output,
                seed=settings.seed,
                num_cpus=plan.env_runner_cpus,
                num_gpus=plan.env_runner_gpus,
            )
    save_beside(settings, settings.output)
    built_on = len(generation_seeds(allowed))
    _show(fates)
    print(
        f"{totals(fates)[0]} records grown from {built_on} seeds, {tokens} tokens written: {settings.output}"
        + (f"; {len(seeds) - built_on} seeds are never built on" if built_on < len(seeds) else "")
    )


if __name__ == "__main__":
    main(sys.argv[1:])

"""Measure a guard on evaluation sets, at its own threshold.

python jobs/evaluate.py --guard runs/laptop/guard --data xstest my-set.jsonl --output metrics.json [--data-dir DIR]
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from guardrail.datasets import load_evaluations
from guardrail.evaluation import evaluate_set
from guardrail.guard import Guard
from jobs.run import write_text
from jobs.settings import JobSettings, load, save_beside
from jobs.terminal import reported_errors, show_metrics


class EvaluateSettings(JobSettings):
    """Settings of the evaluation."""

    guard: Path = Field(description="guard directory")
    data: list[str] = Field(min_length=1, description="evaluation sets by name, or JSON-lines files")
    output: Path = Field(description="JSON file to write")
    data_dir: Path | None = Field(None, description="local copies of public data sets")


def main(arguments: Sequence[str]) -> None:
    """Write and print a guard's metrics."""
    settings = load(EvaluateSettings, arguments, __doc__)
    with reported_errors():
        sets = load_evaluations(settings.data, settings.data_dir)
        guard = Guard.from_pretrained(settings.guard)
        metrics = {name: evaluate_set(guard, items) for name, items in sets.items()}
        settings.output.parent.mkdir(parents=True, exist_ok=True)
        write_text(settings.output, json.dumps({"guard": guard.card.digest, "sets": metrics}, indent=2) + "\n")
    save_beside(settings, settings.output)
    show_metrics(metrics)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Measure a guard, or a moderation service, on evaluation sets, by its own decisions.

python jobs/evaluate.py --guard runs/laptop/guard --data xstest my-set.jsonl --output metrics.json [--data-dir DIR]
python jobs/evaluate.py --guard https://HOST/v1/moderations --data xstest --output metrics.json

A service is sent the texts of the sets; its key, if it wants one, is in RAYGUARD_TARGET_KEY. The output names it by the
model it says it is, where a guard of ours has its digest. It tells no threshold, and its scores (the highest of its
categories) only rank texts: `threshold` and `ece` are null. If it fails, the sets measured before are written.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from guardrail.datasets import load_evaluations
from guardrail.evaluation import evaluate_set
from guardrail.remote import RemoteGuard, evaluate_remote, open_guard
from jobs.run import write_text
from jobs.settings import JobSettings, load, save_beside
from jobs.terminal import reported_errors, show_metrics


class EvaluateSettings(JobSettings):
    """Settings of the evaluation."""

    guard: str = Field(description="guard directory, or URL of a moderation endpoint")
    data: list[str] = Field(min_length=1, description="evaluation sets by name, or JSON-lines files")
    output: Path = Field(description="JSON file to write")
    data_dir: Path | None = Field(None, description="local copies of public data sets")


def main(arguments: Sequence[str]) -> None:
    """Write and print a guard's metrics."""
    settings = load(EvaluateSettings, arguments, __doc__)
    metrics: dict[str, Any] = {}
    with reported_errors():
        sets = load_evaluations(settings.data, settings.data_dir)
        guard = open_guard(settings.guard)
        try:
            for name, items in sets.items():
                metrics[name] = (
                    evaluate_remote(guard, items) if isinstance(guard, RemoteGuard) else evaluate_set(guard, items)
                )
        finally:  # what was asked of a service may have taken hours, and money
            if metrics:
                settings.output.parent.mkdir(parents=True, exist_ok=True)
                asked = guard.name if isinstance(guard, RemoteGuard) else guard.card.digest
                write_text(settings.output, json.dumps({"guard": asked, "sets": metrics}, indent=2) + "\n")
                save_beside(settings, settings.output)
                show_metrics(metrics)


if __name__ == "__main__":
    main(sys.argv[1:])

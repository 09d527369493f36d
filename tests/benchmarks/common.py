"""What benchmarks of the adversary, of curation and of guards have in common."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actors.styles import STYLES
from cluster.resources import plan_for_cluster
from guardrail.datasets import registered_rows
from guardrail.guard_card import GUARD_FILE
from guardrail.records import Record, write_records
from guardrail.training import TrainingConfig, fine_tune

EVALUATION = ("openai-moderation", "xstest", "harmbench", "jailbreakbench", "strongreject", "mitre-frr")
BOTH_LABELS = ("openai-moderation", "xstest")  #: of these sets
REWORDING = [style.name for style in STYLES if style.action != "frame" and not style.transforms]


def train(
    records: Sequence[Record], validation: Sequence[Record], output: Path, start: Path | None = None, seed: int = 0
) -> Path:
    """Train a guard, from the base or an earlier one, unless it is there."""
    if not (output / GUARD_FILE).exists():
        data = output.with_name(f"{output.name}.parquet")
        write_records({record["id"]: record for record in records}.values(), data)
        fine_tune(
            TrainingConfig(),
            data=data,
            validation=validation,
            output=output,
            version=output.name,
            seed=seed,
            start=start,
            cpus_per_worker=plan().guard_worker_cpus,
        )
    return output


def labelled_requests(name: str, data_dir: Path, *, unsafe: bool) -> list[Record]:
    """Return the records of a public set that have a label and no response."""
    records = (row.record for row in registered_rows(name, data_dir))
    return [record for record in records if record and record["unsafe"] is unsafe and not record["response"]]


def plan() -> Any:
    """Return the resource plan of one engine, a local learner and one guard worker."""
    return plan_for_cluster(num_env_runners=1, num_learners=0, num_guard_workers=1)


def show(name: str) -> Any:
    """Return a callback that prints how an iteration went."""

    def after_iteration(done: int, iteration: Any) -> None:
        s = iteration.summary
        terms = " ".join(f"{key} {value:.3f}" for key, value in iteration.learner.items() if key in ("kl", "entropy"))
        seconds = " ".join(f"{key} {value:.0f}s" for key, value in iteration.seconds.items())
        print(
            f"  {name} {done}: {s.valid}/{s.attempts} valid, {s.successes} successes, reward {s.parts['reward']:.2f}, "
            f"{terms} [{seconds}] {s.rejected}",
            flush=True,
        )

    return after_iteration


def begun(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Keep the options beside the results; end with an error where those in `--dir` are of others."""
    given = {key: value for key, value in vars(options).items() if key not in ("seeds", "dir", "data_dir")}
    path = options.dir / "options.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and (before := json.loads(path.read_text())) != given:
        parser.error(f"{options.dir} holds results of {before}; give another --dir")
    path.write_text(json.dumps(given))


def print_figures(results: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    """Print mean and standard deviation of figures over the random seeds, and the means as JSON in the last line."""
    print(f"\n{'':<34}{'mean':>8}{'std':>8}")
    means: dict[str, float | None] = {}
    for name in names:
        known = [result[name] for result in results if result[name] is not None]
        means[name] = round(float(np.mean(known)), 4) if known else None
        print(f"{name:<34}" + (f"{np.mean(known):>8.3f}{np.std(known):>8.3f}" if known else "       -"))
    print(json.dumps(means))

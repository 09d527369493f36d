"""What an attacker learns: yield, success and diversity on goals no guard was trained on, trained beside untrained.

python -m tests.benchmarks.adversary_learning [--data-dir DIR] [--seeds 0 1 2] [--iterations 32] [--objective flow]
    [--dir DIR]

The guard is fixed, and hardened against frames: trained on half the embedded seeds, alone and behind frames that the
untrained attacker wrote. The attacker learns on other seeds than those it is measured on, by rewrites and compositions;
before and after, as many attempts are made on the same goals, in the same styles, all styles alike. Labels are checked
by a classifier of the public sets in `--data-dir`, and by whoever reads the successes that are left in `--dir`. A run
that is killed goes on where it was.
"""

import argparse
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from actors.adversary import Adversary, Outcome
from actors.config import AdversaryConfig, CurriculumConfig, ObjectiveConfig
from actors.styles import STYLES
from cluster.connect import connect
from guardrail.diversity import unique_clusters
from guardrail.generable import generation_seeds
from guardrail.guard_card import GUARD_FILE
from guardrail.models import cache_dir
from guardrail.records import Record, from_table
from guardrail.seeds import HELD_OUT, TRAIN, VALIDATION, embedded_seeds, split_by_seed
from tests.benchmarks.common import REWORDING, begun, plan, print_figures, show, train
from tests.benchmarks.independent_check import IndependentCheck

FRAMES = [style.name for style in STYLES if style.level == 0]
OBJECTIVES = {
    "grpo": ObjectiveConfig(),
    "rloo": ObjectiveConfig(advantage="rloo"),
    "flow": ObjectiveConfig(advantage="rloo", hold="balance", kl_coefficient=0.05),
}
MEASURED_ITERATIONS = 10  # of `groups` x `group_size` attempts, before and after


def parts() -> dict[str, list[Record]]:
    """Return the seeds by use: "guard" and "threshold" for the guard, "learn" and "measure" for the attacker."""
    outer = split_by_seed(embedded_seeds(), validation=0.15, held_out=0.45)
    inner = split_by_seed(generation_seeds(outer[HELD_OUT]), validation=0.4, held_out=0.0)
    return {
        "guard": outer[TRAIN],
        "threshold": outer[VALIDATION],
        "learn": inner[TRAIN],
        "measure": inner[VALIDATION],
    }


def attacker(styles: Sequence[str], options: argparse.Namespace) -> AdversaryConfig:
    """Return the attacker's settings; styles are drawn alike, so that what is measured is the policy."""
    return AdversaryConfig(
        styles=list(styles),
        groups=options.groups,
        group_size=4,
        minibatch=8,
        trainable_layers=10,
        learning_rate=options.learning_rate,
        objective=OBJECTIVES[options.objective],
        curriculum=CurriculumConfig(floor=1.0),
    )


def hardened_guard(directory: Path, seeds: dict[str, list[Record]], options: argparse.Namespace) -> Path:
    """Return a guard trained on its half of the seeds, alone and behind frames of the untrained attacker."""
    guard = directory / "guard"
    if (guard / GUARD_FILE).exists():
        return guard
    plain = train(seeds["guard"], seeds["threshold"], directory / "plain")
    adversary = Adversary(attacker(FRAMES, options), plan(), seed=0)
    try:
        framing = adversary.attack(
            0, seeds["guard"], str(plain), directory / "framing", show("framing"), updates=5, learn=False
        )
    finally:
        adversary.stop()
    framed = from_table(framing.attempts.filter(framing.attempts["valid"]))
    return train([*seeds["guard"], *framed], seeds["threshold"], guard)


def figures(outcome: Outcome, goals: dict[str, Record], check: IndependentCheck | None) -> dict[str, Any]:
    """Return the figures of one measurement."""
    table = outcome.attempts
    successes: pa.Table = table.filter(table["success"])
    attempts, valid = table.num_rows, int(np.sum(table["valid"].to_numpy(zero_copy_only=False)))
    embeddings = np.array(successes["embedding"].to_pylist(), dtype=np.float32)
    rows = successes.to_pylist()
    result = {
        "attempts": attempts,
        "valid": valid,
        "successes": len(rows),
        "distinct_successes": len({row["id"] for row in rows}),
        "yield": len(rows) / attempts,
        "success_rate": len(rows) / max(1, valid),
        "unique_clusters": unique_clusters(embeddings),
        "unsafe_successes": sum(row["unsafe"] for row in rows),
    }
    if check:
        result["label"] = check.label_kept(
            [row["text"] for row in rows],
            [goals[row["parent_id"]]["text"] for row in rows],
            [row["unsafe"] for row in rows],
        )
    return result


@functools.cache
def independent_check(data_dir: Path) -> IndependentCheck:
    """Return the check, trained once; it takes minutes."""
    return IndependentCheck(data_dir)


def run_seed(seed: int, directory: Path, guard: Path, seeds: dict[str, list[Record]], options: Any) -> dict[str, Any]:
    """Measure, train and measure again with one random seed."""
    adversary = Adversary(attacker(REWORDING, options), plan(), seed)
    try:

        def measure(name: str) -> Outcome:
            return adversary.attack(
                0,
                seeds["measure"],
                str(guard),
                directory / name,
                show(name),
                updates=MEASURED_ITERATIONS,
                learn=False,
            )

        # In this order also when resumed: what is done is read, and the checkpoint of the last step restored.
        untrained = measure("untrained")
        adversary.attack(
            1, seeds["learn"], str(guard), directory / "training", show(f"seed {seed}"), updates=options.iterations
        )
        trained = measure("trained")
    finally:
        adversary.stop()
    check = independent_check(options.data_dir) if options.data_dir else None
    goals = {record["id"]: record for record in seeds["measure"]}
    before, after = figures(untrained, goals, check), figures(trained, goals, check)
    write_successes(trained, goals, directory / "successes.jsonl")
    return {
        "untrained": before,
        "trained": after,
        "yield_ratio": after["yield"] / max(before["yield"], 1e-9),
        "distinct_ratio": after["distinct_successes"] / max(before["distinct_successes"], 1),
        "success_rate_ratio": after["success_rate"] / max(before["success_rate"], 1e-9),
        "unique_clusters_ratio": after["unique_clusters"] / max(before["unique_clusters"], 1),
        "label_kept_independent": after["label"]["kept"] if check else None,
    }


def write_successes(outcome: Outcome, goals: dict[str, Record], path: Path) -> None:
    """Write 50 successes, drawn at random, with their goals, to be read by a person."""
    rows = outcome.attempts.filter(outcome.attempts["success"]).to_pylist()
    drawn = np.random.default_rng(0).permutation(len(rows))[:50]
    lines = [
        json.dumps(
            {
                **{key: rows[i][key] for key in ("id", "unsafe", "style", "text")},
                "goal": goals[rows[i]["parent_id"]]["text"],
            }
        )
        for i in drawn
    ]
    path.write_text("\n".join(lines) + "\n")


def main(arguments: Sequence[str]) -> None:
    """Run all seeds and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="public training sets, for the independent check of labels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=32)
    parser.add_argument("--groups", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--objective", choices=OBJECTIVES, default="grpo")
    parser.add_argument("--dir", type=Path, default=cache_dir() / "benchmarks" / "adversary_learning")
    options = parser.parse_args(arguments)
    begun(options, parser)
    results = []
    with connect():
        seeds = parts()
        print({name: len(records) for name, records in seeds.items()})
        guard = hardened_guard(options.dir, seeds, options)
        for seed in options.seeds:
            directory = options.dir / f"seed-{seed}"
            saved = directory / "result.json"
            if not saved.exists():
                result = run_seed(seed, directory, guard, seeds, options)
                saved.write_text(json.dumps(result, indent=2))
            results.append(json.loads(saved.read_text()))
            print(f"seed {seed}: {json.dumps(results[-1])}", flush=True)
    names = ("yield_ratio", "distinct_ratio", "success_rate_ratio", "label_kept_independent", "unique_clusters_ratio")
    print_figures(results, names)


if __name__ == "__main__":
    main(sys.argv[1:])

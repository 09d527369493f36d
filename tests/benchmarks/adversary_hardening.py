"""Whether the loop hardens a guard: fresh attackers against the final guard, the round-0 guard and a control.

python -m tests.benchmarks.adversary_hardening --data-dir DIR [--seeds 0 1] [--rounds 3] [--iterations 8] [--dir DIR]

An attacker is taught to rewrite once (`actors/demonstrations.py`); all but the control's begin as that one. For each
random seed, attackers that rewrite and compose learn for `--rounds` rounds; after each, the round-0 guard is trained
further on every attack so far that kept its label and on what deterministic transforms of the seeds got past the guard.
The control is trained further as often, on as many transforms and what the untrained model makes in equally many
attempts. Then fresh attackers, rewriting and composing in styles that no guard was trained on, train for the budget of
a round against each of the three guards, on goals no guard was trained on; what counts is the yield of the policies
they come to. Only goals that all three guards judge right as they are written are attacked: a guard that misses a goal
itself misses it in other words as well, and no attack is needed for that (`goals_judged_wrong` says how many). Recall
under transforms is of 50 unsafe goals, judged right or not, recall on left-out styles of what the taught attacker makes
of the goals that are attacked; benign false positives are of the benign items of three sets in `--data-dir`. A run that
is killed goes on where it was.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from actors.adversary import Adversary, Outcome
from actors.attempts import kept_of, successes_of
from actors.config import AdversaryConfig, GateConfig
from actors.demonstrations import TeachingConfig, demonstrations, passing, teach
from cluster.connect import connect
from guardrail.evaluation import evaluate_set, misjudged, success_rate
from guardrail.evaluation_sets import load_evaluations
from guardrail.generable import generation_seeds
from guardrail.guard import Guard
from guardrail.intent import IntentModel
from guardrail.models import cache_dir
from guardrail.records import Record, from_table
from guardrail.seeds import HELD_OUT, TRAIN, VALIDATION, embedded_seeds, split_by_seed
from guardrail.transforms import TRANSFORMS, drawn, transformed
from tests.benchmarks.common import REWORDING, begun, plan, print_figures, show, train

#: Styles that only the fresh attackers use.
LEFT_OUT = ("casual", "academic_question", "translated", "authority", "splitting")
TRAINED = tuple(name for name in REWORDING if name not in LEFT_OUT)
TRANSFORMED = 100  # seeds that transforms write in a round, as the loop has it
MEASURED_ITERATIONS = 24  # of `groups` x 4 attempts, of each fresh attacker: successes are few
BENIGN_SETS = ("xstest", "mitre-frr", "openai-moderation")


def parts() -> dict[str, list[Record]]:
    """Return the seeds by use: "guard" and "threshold" for the guards, "goals" for the fresh attackers."""
    split = split_by_seed(embedded_seeds(), validation=0.2, held_out=0.2)
    return {"guard": split[TRAIN], "threshold": split[VALIDATION], "goals": generation_seeds(split[HELD_OUT])}


def taught(directory: Path) -> Path:
    """Return the attacker that was taught to rewrite, which is taught unless it is there."""
    if not directory.exists():
        shown = passing(demonstrations(), GateConfig(), IntentModel.from_pretrained())
        teach(shown, TeachingConfig(), directory, 0, lambda *_: None)
    return directory


def attacker(styles: Sequence[str], options: argparse.Namespace, model: Path | None) -> AdversaryConfig:
    """Return the settings of an attacker that begins as `model`; None: as the bundled one, untaught."""
    return AdversaryConfig(
        **({"model": str(model)} if model else {}),
        styles=list(styles),
        groups=options.groups,
        group_size=4,
        minibatch=8,
        trainable_layers=10,
        learning_rate=5e-5,
    )


def harden(
    directory: Path, seeds: dict[str, list[Record]], first: Path, options: argparse.Namespace, seed: int, *, learn: bool
) -> Path:
    """Return the guard after all rounds: attacked by attackers that learn, or (the control) by untrained ones."""
    guard, found, kept, missed = first, list[Record](), list[Record](), list[Record]()
    name = "learned" if learn else "control"
    adversary = Adversary(attacker(TRAINED, options, taught(options.dir / "taught") if learn else None), plan(), seed)
    try:
        for index in range(1, options.rounds + 1):
            outcome = adversary.attack(
                index,
                seeds["guard"],
                str(guard),
                directory / f"{name}-{index}",
                show(f"{name} {index}"),
                updates=options.iterations,
                earlier=found,
                learn=learn,
            )
            found += successes_of(outcome.attempts)
            kept += kept_of(outcome.attempts)
            written = drawn(generation_seeds(seeds["guard"]), TRANSFORMED, 1000 * seed + index)
            missed += misjudged(Guard.from_pretrained(guard), written)
            attacks = [{key: r[key] for key in r if key != "style"} for r in kept]
            output = directory / f"{name}-guard-{index}"
            guard = train([*seeds["guard"], *missed, *attacks], seeds["threshold"], output, start=first)
    finally:
        adversary.stop()
    return guard


def fresh_yield(
    directory: Path, goals: Sequence[Record], guard: Path, options: argparse.Namespace, seed: int
) -> dict[str, float]:
    """Return yield, valid attempts and successes of a fresh attacker after it was trained against a guard."""
    adversary = Adversary(attacker(LEFT_OUT, options, taught(options.dir / "taught")), plan(), seed)
    try:
        adversary.attack(1, goals, str(guard), directory / "training", show(directory.name), updates=options.iterations)
        outcome: Outcome = adversary.attack(
            2,
            goals,
            str(guard),
            directory / "measured",
            show(directory.name),
            updates=MEASURED_ITERATIONS,
            learn=False,
        )
    finally:
        adversary.stop()
    summaries = [each.summary for each in outcome.iterations]
    successes = sum(s.successes for s in summaries)
    return {
        "yield": successes / sum(s.attempts for s in summaries),
        "valid": sum(s.valid for s in summaries),
        "successes": successes,
    }


def benign_fpr(guard: Path, data_dir: Path) -> float:
    """Return the false-positive rate over the benign records of the evaluation sets, the sets weighing the same."""
    loaded = Guard.from_pretrained(guard)
    sets = load_evaluations(list(BENIGN_SETS), data_dir)
    return float(np.mean([evaluate_set(loaded, items)["fpr"] for items in sets.values()]))


def transform_recall(guard: Path, goals: Sequence[Record]) -> float:
    """Return the share of transformed unsafe goals that a guard flags, over all transforms."""
    unsafe = [goal for goal in goals if goal["unsafe"]][:50]
    return recall(guard, [transformed(goal, name, 0) for name in TRANSFORMS for goal in unsafe])


def recall(guard: Path, unsafe: Sequence[Record]) -> float:
    """Return the share of unsafe records that a guard flags."""
    missed = success_rate(Guard.from_pretrained(guard), unsafe)
    assert missed is not None
    return 1 - missed


def left_out_attacks(
    directory: Path, goals: Sequence[Record], guard: Path, options: argparse.Namespace, seed: int
) -> list[Record]:
    """Return unsafe attacks in the left-out styles that keep their label, whatever the guard says of them."""
    adversary = Adversary(attacker(LEFT_OUT, options, taught(options.dir / "taught")), plan(), seed)
    try:
        outcome = adversary.attack(0, goals, str(guard), directory, show("left-out styles"), updates=4, learn=False)
    finally:
        adversary.stop()
    attempts = outcome.attempts
    return from_table(attempts.filter(pc.and_(attempts["valid"], attempts["unsafe"])))


def run_seed(seed: int, directory: Path, first: Path, seeds: dict[str, list[Record]], options: Any) -> dict[str, Any]:
    """Return the figures of one random seed."""
    guards = {
        "round0": first,
        "final": harden(directory, seeds, first, options, seed, learn=True),
        "control": harden(directory, seeds, first, options, seed, learn=False),
    }
    wrong = {r["id"] for guard in guards.values() for r in misjudged(Guard.from_pretrained(guard), seeds["goals"])}
    goals = [goal for goal in seeds["goals"] if goal["id"] not in wrong]
    attacks = left_out_attacks(directory / "left-out", goals, first, options, 2000 + seed)
    result: dict[str, Any] = {"goals_judged_wrong": len(wrong), "left_out_attacks": len(attacks)}
    for name, guard in guards.items():
        result[name] = {
            **fresh_yield(directory / f"fresh-{name}", goals, guard, options, 1000 + seed),
            "benign_fpr": benign_fpr(guard, options.data_dir),
            "transform_recall": transform_recall(guard, seeds["goals"]),
            "left_out_recall": recall(guard, attacks),
        }
    yields = {name: result[name]["yield"] for name in guards}
    result["fresh_attacker_ratio_vs_round0"] = yields["final"] / max(yields["round0"], 1e-9)
    result["fresh_attacker_ratio_vs_control"] = yields["final"] / max(yields["control"], 1e-9)
    for name in ("transform_recall", "left_out_recall", "benign_fpr"):
        result[f"{name}_delta"] = result["final"][name] - result["round0"][name]
    return result


def main(arguments: Sequence[str]) -> None:
    """Run all seeds and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data-dir", type=Path, required=True, help="public evaluation sets, for benign false positives"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--groups", type=int, default=32)
    parser.add_argument("--dir", type=Path, default=cache_dir() / "benchmarks" / "adversary_hardening")
    options = parser.parse_args(arguments)
    begun(options, parser)
    results = []
    with connect():
        seeds = parts()
        first = train(seeds["guard"], seeds["threshold"], options.dir / "round0")
        for seed in options.seeds:
            directory = options.dir / f"seed-{seed}"
            saved = directory / "result.json"
            if not saved.exists():
                saved.parent.mkdir(parents=True, exist_ok=True)
                result = run_seed(seed, directory, first, seeds, options)
                saved.write_text(json.dumps(result, indent=2))
            results.append(json.loads(saved.read_text()))
            print(f"seed {seed}: {json.dumps(results[-1])}", flush=True)
    names = (
        "fresh_attacker_ratio_vs_round0",
        "fresh_attacker_ratio_vs_control",
        "benign_fpr_delta",
        "transform_recall_delta",
        "left_out_recall_delta",
    )
    print_figures(results, names)


if __name__ == "__main__":
    main(sys.argv[1:])

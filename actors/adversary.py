"""The adversary of the loop: one `GRPO` algorithm kept over the rounds, its checkpoints, its attempts as records."""

import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from actors.config import AdversaryConfig
from actors.grpo import GRPO, GRPOConfig
from cluster.resources import ResourcePlan
from guardrail.guard import GuardCard
from guardrail.records import Record, record_id, to_table


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a round of attacking brought.

    Attributes:
        attempts: every attempt, see `GRPO.attempts`.
        goals_left_out: how many goals could not be used, by reason.
        attacker: version of the attacker that the round ended with.
        syncs: `probe_max_abs_logprob_diff` and `weight_distance` after each weight sync.
        seconds: by phase: generate, score, update, sync.
        tokens: generated.
        learner: the last update's loss terms.
    """

    attempts: list[dict[str, Any]]
    goals_left_out: dict[str, int]
    attacker: str
    syncs: list[dict[str, float]]
    seconds: dict[str, float]
    tokens: int
    learner: dict[str, float]


class Adversary:
    """Attackers that keep what they have learned from round to round.

    Args:
        config: the adversary's settings.
        plan: what runners, learners and scorer reserve.
        seed: decides every draw and sample.
    """

    def __init__(self, config: AdversaryConfig, plan: ResourcePlan, seed: int) -> None:
        self.config = config
        self.algorithm: GRPO = GRPOConfig.of(config, plan, seed).build_algo()

    def attack(
        self,
        round_index: int,
        goals: Sequence[Record],
        guard: Path,
        archive: Sequence[str],
        after_iteration: Callable[[int, Sequence[dict[str, Any]]], None],
    ) -> Outcome:
        """Train the attackers for a round against a guard.

        Args:
            round_index: of the loop, from 1.
            goals: records to attack with.
            guard: directory of the guard.
            archive: texts of earlier successes, for novelty.
            after_iteration: called with how many iterations are done and the attempts of the last one.
        """
        algorithm = self.algorithm
        algorithm.start_round(round_index, goals, str(guard.resolve()), archive)  # actors have folders of their own
        result: dict[str, Any] = {}
        for done in range(1, self.config.iterations + 1):
            before = len(algorithm.attempts)
            result = algorithm.train()
            after_iteration(done, algorithm.attempts[before:])
        learner = result.get("learners", {}).get("default_policy", {})
        return Outcome(
            attempts=algorithm.attempts,
            goals_left_out=algorithm.goals_left_out,
            attacker=f"{self.config.model.removeprefix('bundled:')}/round-{round_index:02d}",
            syncs=algorithm.syncs,
            seconds={name: round(value, 3) for name, value in algorithm.phase_seconds.items()},
            tokens=algorithm.generated_tokens,
            learner={name: float(value) for name, value in learner.items() if isinstance(value, int | float)},
        )

    def save(self, directory: Path, round_index: int) -> None:
        """Keep the adversary as it is after a round; the last two rounds are kept, as a killed round starts over."""
        partial = directory / ".partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        self.algorithm.save_to_path(str(partial.resolve()))
        target = directory / f"round-{round_index:02d}"
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
        for old in sorted(directory.glob("round-*"))[:-2]:
            shutil.rmtree(old)

    def restore(self, directory: Path, round_index: int) -> None:
        """Go on from what `save` kept after a round; round 0 is the untrained attacker."""
        if round_index > 0:
            self.algorithm.restore_from_path(str((directory / f"round-{round_index:02d}").resolve()))
            self.algorithm.restored()

    def stop(self) -> None:
        """Stop all actors of the adversary."""
        self.algorithm.stop()


def attack_table(outcome: Outcome, round_index: int, guard: GuardCard) -> pa.Table:
    """Return all attempts of a round as records, plus style, action, iteration, valid, success, rejected."""
    records, extra = [], []
    for attempt in outcome.attempts:
        goal: Record = attempt["goal"]
        records.append(
            {
                **goal,
                "id": record_id(attempt["text"]),
                "text": attempt["text"],
                "parent_id": goal["id"],
                "method": "rl",
                "round": round_index,
                "attacker_version": outcome.attacker,
                "guard_version": f"{guard.version}@{guard.digest}",
                "scores": attempt["scores"],
            }
        )
        extra.append({key: attempt[key] for key in ("style", "action", "iteration", "valid", "success", "rejected")})
    table = to_table(records)
    schema = pa.schema(
        [
            ("style", pa.string()),
            ("action", pa.string()),
            ("iteration", pa.int32()),
            ("valid", pa.bool_()),
            ("success", pa.bool_()),
            ("rejected", pa.string()),
        ]
    )
    columns = pa.Table.from_pylist(extra, schema=schema)
    for name in schema.names:
        table = table.append_column(name, columns[name])
    return table

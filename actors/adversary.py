"""The adversary of the loop: one `GRPO` algorithm kept over the rounds, its checkpoints, its attempts as a table.

Every iteration leaves its attempts, the archive and a checkpoint on disk: a round that is killed goes on after the last
iteration that ended, and no success is lost.
"""

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from actors.archive import category_of
from actors.attempts import forget_attempts, read_attempts
from actors.config import AdversaryConfig
from actors.grpo import GRPO, GRPOConfig
from actors.summary import Summary
from cluster.resources import ResourcePlan
from guardrail.files import write_text
from guardrail.records import Record

logger = logging.getLogger(__name__)

_PROGRESS = "progress.json"
_TRIES = 3


@dataclasses.dataclass(frozen=True)
class Iteration:
    """One policy update.

    Attributes:
        summary: of the attempts.
        learner: the update's loss terms; empty where there was nothing to learn from.
        sync: `probe_max_abs_logprob_diff` and `weight_distance` after the weight sync; empty likewise.
        seconds: by phase: generate, score, update, sync.
    """

    summary: Summary
    learner: dict[str, float]
    sync: dict[str, float]
    seconds: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return {**dataclasses.asdict(self), "summary": self.summary.as_json()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Iteration":
        """Return what `as_json` wrote."""
        return cls(**{**values, "summary": Summary.from_json(values["summary"])})


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a round of attacking brought.

    Attributes:
        directory: of the round; holds every attempt.
        goals_left_out: how many goals could not be used, by reason.
        iterations: in order.
    """

    directory: Path
    goals_left_out: dict[str, int]
    iterations: list[Iteration]

    @property
    def attempts(self) -> pa.Table:
        """Every attempt of these, a table of `ATTEMPTS`: read anew, for they can be more than one likes to hold."""
        return read_attempts(self.directory)

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each phase, over the iterations."""
        names = dict.fromkeys(name for each in self.iterations for name in each.seconds)
        return {name: round(sum(each.seconds.get(name, 0.0) for each in self.iterations), 3) for name in names}


class Adversary:
    """Attackers that keep what they have learned from round to round.

    Args:
        config: the adversary's settings.
        plan: what runners, learners and scorer reserve.
        seed: decides every draw and sample.
    """

    _kept: Path | None = None  # the checkpoint that holds what the attackers have learned so far

    def __init__(self, config: AdversaryConfig, plan: ResourcePlan, seed: int) -> None:
        self.config = config
        self.algorithm: GRPO = GRPOConfig.of(config, plan, seed).build_algo()

    def attack(
        self,
        round_index: int,
        goals: Sequence[Record],
        guard: str,
        directory: Path,
        after_iteration: Callable[[int, Iteration], None],
        *,
        updates: int | None = None,
        guard_version: str = "",
        earlier: Sequence[Record] = (),
        learn: bool = True,
    ) -> Outcome:
        """Train the attackers for a round against a guard, or go on with a round that was killed.

        Args:
            round_index: of the loop, from 1.
            goals: records to attack with.
            guard: the guard's directory or URL (`guardrail.targets.open_guard`).
            directory: where attempts, archive and checkpoint of the round are kept; all nodes see it.
            after_iteration: called with how many iterations are done, and the last one.
            updates: policy updates of the whole round; None: those of the settings.
            guard_version: name that records of attempts give the guard.
            earlier: successes of earlier rounds, records with a `style`, for novelty.
            learn: whether the attackers learn; if not, the round measures them as they are.
        """
        directory = directory.resolve()  # actors have folders of their own
        directory.mkdir(parents=True, exist_ok=True)
        algorithm = self.algorithm
        wanted = updates or self.config.iterations

        def begin() -> list[Iteration]:
            if replaced and not (directory / _PROGRESS).exists() and self._kept:  # they died between two rounds
                algorithm.restore_from_path(str(self._kept))
            algorithm.start_round(
                round_index,
                goals,
                guard if "://" in guard else str(Path(guard).resolve()),
                str(directory),
                target_version=guard_version,
                attacker_version=f"{_model_name(self.config.model)}/round-{round_index:02d}",
                earlier=[(category_of(r), r["style"], r["id"], r["text"]) for r in earlier],
                iterations=wanted,
                learn=learn,
                done=len(_progress(directory)["iterations"]),
            )
            if (directory / _PROGRESS).exists():
                return self.restore(directory)
            algorithm.weight_sync.send()  # an engine that died since the last round came back with the base's weights
            if self.config.learners:
                self._save(directory, [])  # what learners that replace dead ones begin with
            return []

        iterations: list[Iteration] | None = None
        tries, replaced = 0, False
        while iterations is None or len(iterations) < wanted:
            try:
                if iterations is None:
                    iterations = begin()
                    continue
                iteration = self._iterate()
                self._save(directory, [*iterations, iteration])
            except Exception as error:
                tries += 1
                if tries == _TRIES or not algorithm.replace_dead_learners():
                    forget_attempts(directory, len(_progress(directory)["iterations"]))  # but not what succeeded
                    raise
                logger.warning("a learner died (%s); new ones run the iteration again", error)
                iterations, replaced = None, True
                continue
            tries = 0
            iterations.append(iteration)
            after_iteration(len(iterations), iteration)
        return Outcome(directory, algorithm.goals_left_out, iterations)

    def _iterate(self) -> Iteration:
        algorithm = self.algorithm
        result = algorithm.train()
        terms = result.get("learners", {}).get("default_policy", {}) if algorithm.sync else {}
        learner = {name: float(value) for name, value in terms.items() if isinstance(value, int | float)}
        assert algorithm.summary is not None
        return Iteration(algorithm.summary, learner, algorithm.sync, algorithm.phase_seconds)

    def _save(self, directory: Path, iterations: Sequence[Iteration]) -> None:
        """Keep a checkpoint of the iteration that just ended; the one before it goes once this one is whole."""
        name = f"checkpoint-{len(iterations):04d}"
        partial = directory / f".{name}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        self.algorithm.save_to_path(str(partial))
        shutil.rmtree(directory / name, ignore_errors=True)
        os.replace(partial, directory / name)
        progress = {"checkpoint": name, "iterations": [each.as_json() for each in iterations]}
        write_text(directory / _PROGRESS, json.dumps(progress))
        self._kept = directory / name
        forget_checkpoints(directory, but=name)

    def restore(self, directory: Path) -> list[Iteration]:
        """Go on from the last iteration that a round left in its directory; return its iterations."""
        progress = _progress(directory)
        self._kept = (directory / progress["checkpoint"]).resolve()
        self.algorithm.restore_from_path(str(self._kept))
        self.algorithm.weight_sync.send()
        return [Iteration.from_json(each) for each in progress["iterations"]]

    def stop(self) -> None:
        """Stop all actors of the adversary."""
        self.algorithm.stop()


def _model_name(model: str) -> str:
    return Path(model).name if Path(model).is_dir() else model.removeprefix("bundled:")


def _progress(directory: Path) -> dict[str, Any]:
    path = directory / _PROGRESS
    return json.loads(path.read_text()) if path.exists() else {"iterations": []}


def forget_checkpoints(directory: Path, but: str = "") -> None:
    """Remove the checkpoints of a round's directory, except one."""
    for old in directory.glob("checkpoint-*"):
        if old.name != but:
            shutil.rmtree(old)

"""What attackers generate, on its way through the reward workers.

The driver passes references on: rollouts go from the runners to the workers, batches from there to the learners.
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError

from actors.attempts import forget_attempts
from actors.env_runner import Task
from actors.errors import DEATHS, AdversaryError
from actors.reward_worker import RoundSetup
from actors.summary import Summary
from actors.weight_sync import WeightSync
from guardrail.targets import is_url

logger = logging.getLogger(__name__)

RUNNER_TIMEOUT_SECONDS = 600.0
_SCORER_TIMEOUT_SECONDS = 3600.0  # judges of billions of parameters on CPUs take their time
_TRIES = 3


@dataclasses.dataclass
class Asked:
    """Tasks that runners are at: by runner the reference of its share; since when, and until when if that is known."""

    tasks: list[Task]
    seed: int
    shares: dict[int, ray.ObjectRef]
    begun: float = dataclasses.field(default_factory=time.monotonic)
    ended: float | None = None

    def wait(self) -> None:
        """Wait until the runners are done, or are to be taken for dead."""
        refs = list(self.shares.values())
        ray.wait(refs, num_returns=len(refs), timeout=RUNNER_TIMEOUT_SECONDS, fetch_local=False)
        self.ended = time.monotonic()


class Rollouts:
    """Has runners generate and reward workers score, both at once, whoever of them dies.

    Args:
        runners: RLlib's group of them.
        workers: handles of `RewardWorker`.
        weight_sync: gives runners that come back their weights.
    """

    def __init__(self, runners: Any, workers: Sequence[Any], weight_sync: WeightSync) -> None:
        self.runners, self.workers, self.weight_sync = runners, workers, weight_sync
        self.phase_seconds: dict[str, float] = {}  #: those of "generate" and "score" are added to these

    def start_round(self, setup: RoundSetup, done: int) -> None:
        """Attack another guard; of attempts against it, keep those of the first `done` iterations."""
        self._directory, self._target = Path(setup.directory), setup.target
        forget_attempts(self._directory, done)
        self._setup = [ray.put(setup)]  # the goals travel once, however many workers and calls there are
        self._archived = self.workers[0].archived.remote(self._setup, done)

    def ask(self, tasks: Sequence[Task], seed: int) -> Asked:
        """Have the runners generate, each its share."""
        ids = self.runners.healthy_env_runner_ids()
        shares = [list(tasks[i :: len(ids)]) for i in range(len(ids))]
        started = {
            runner: self.runners._worker_manager.actors()[runner].sample.remote(
                tasks=share, seed=seed * 1000 + i, at_least=self.weight_sync.version
            )
            for i, (runner, share) in enumerate(zip(ids, shares, strict=True))
            if share
        }
        return Asked(list(tasks), seed, started)

    def gather(
        self, asked: Asked, iteration: int, *, learners: int, weights_version: int
    ) -> tuple[Summary, list[ray.ObjectRef]]:
        """Have what the runners make scored; return the iteration's summary, and a batch for each learner.

        A runner that dies takes its share with it, unless it was all there was: then that is asked again. A reward
        worker that dies is restarted by Ray, and scores again what it was at.

        Raises:
            AdversaryError: engines or scorers do not answer in time, or actors die again and again.
        """
        for again in range(_TRIES):
            if again:
                asked = self.ask(asked.tasks, asked.seed)
            try:
                if scored := self._scored_as_they_come(asked, iteration):
                    with timed(self.phase_seconds, "score"):
                        return self._finish(scored, iteration, learners, weights_version)
            except ObjectLostError as error:
                logger.warning("a node died with what it held (%s); the iteration is run again", error)
                # What they are at is written then.
                scorers_say([worker.__ray_ready__.remote() for worker in self.workers])
                self.weight_sync.recover()
                forget_attempts(self._directory, iteration)  # shares may be dealt out otherwise
                self._archived = self.workers[0].archived.remote(self._setup, iteration)
        raise AdversaryError(f"actors died {_TRIES} times in a row; see their logs in the dashboard")

    def diversity(self, iteration: int) -> ray.ObjectRef:
        """Return the reference of how diverse an iteration's attempts were."""
        return self.workers[0].diversity.remote(self._setup, iteration)

    def _scored_as_they_come(self, asked: Asked, iteration: int) -> list[ray.ObjectRef]:
        """Return references of what reward workers make of rollouts, once an engine is there for the next iteration.

        A worker that is free takes its share of what waits: the models get what several runners made at once, and the
        runners that are still at work do not wait for it.
        """
        generating = {share: runner for runner, share in asked.shares.items()}
        places = {runner: place for place, runner in enumerate(asked.shares)}
        waiting: list[int] = []
        scoring: dict[ray.ObjectRef, tuple[list[int], Any, ray.ObjectRef]] = {}
        free, scored, dead = list(self.workers), list[ray.ObjectRef](), list[int]()
        begun, generated = time.monotonic(), asked.ended or asked.begun
        while generating or scoring:
            left = begun + RUNNER_TIMEOUT_SECONDS - time.monotonic() if generating else _SCORER_TIMEOUT_SECONDS
            ready = _ready([*generating, *scoring], max(0.0, left))
            if not ready:
                raise AdversaryError(
                    f"attackers took longer than {RUNNER_TIMEOUT_SECONDS:.0f} s to generate; ask for less at once: "
                    "adversary.groups, adversary.group_size or adversary.max_new_tokens"
                    if generating
                    else _silent_scorers(self._target)
                )
            for ref in ready:
                if ref in generating:
                    waiting.append(generating.pop(ref))
                    generated = asked.ended or time.monotonic()
                else:
                    runners, worker, result = scoring.pop(ref)
                    free.append(worker)
                    lost = scorers_say(ref)
                    dead += [runners[i] for i in lost]
                    if len(lost) < len(runners):
                        scored.append(result)
            waiting.sort(key=places.__getitem__)
            for part in dealt(waiting, len(self.workers))[: len(free)]:
                worker = free.pop(0)
                shares = [(places[runner], asked.shares[runner]) for runner in part]
                receipt, result = self._have_scored(worker, iteration, shares)
                scoring[receipt] = part, worker, result
                del waiting[: len(part)]
        _add(self.phase_seconds, "generate", generated - asked.begun)  # ahead: while learners updated
        _add(self.phase_seconds, "score", time.monotonic() - max(begun, generated))
        if dead:
            logger.warning("%d of %d attackers died, or came back with old weights", len(dead), len(asked.shares))
            for runner in dead:
                self.runners._worker_manager.set_actor_state(runner, healthy=False)
            self.weight_sync.recover()
        return scored

    def _have_scored(
        self, worker: Any, iteration: int, shares: Sequence[tuple[int, ray.ObjectRef]]
    ) -> tuple[ray.ObjectRef, ray.ObjectRef]:
        """Have a worker score runners' shares; return references of which were lost, and of what came of the rest."""
        return worker.score.options(num_returns=2).remote(self._setup, iteration, shares, self._archived)

    def _finish(
        self, parts: Sequence[ray.ObjectRef], iteration: int, learners: int, weights_version: int
    ) -> tuple[Summary, list[ray.ObjectRef]]:
        method = self.workers[0].finish.options(num_returns=2 + learners)
        summary, self._archived, *batches = method.remote(self._setup, iteration, learners, weights_version, *parts)
        return scorers_say(summary), batches


@contextlib.contextmanager
def timed(phase_seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Add the seconds that the block takes to those of a phase."""
    start = time.monotonic()
    yield
    _add(phase_seconds, phase, time.monotonic() - start)


def scorers_say(refs: Any) -> Any:
    """Return what reward workers or judges answer.

    Raises:
        AdversaryError: they do not answer in time, or Ray has given one up.
    """
    try:
        return ray.get(refs, timeout=_SCORER_TIMEOUT_SECONDS)
    except GetTimeoutError:
        raise AdversaryError(_silent_scorers()) from None
    except DEATHS as error:
        why = str(error).strip().splitlines()[-1]
        raise AdversaryError(f"a scorer or judge died again and again ({why}); see its log in the dashboard") from error


def dealt(waiting: Sequence[int], workers: int) -> list[list[int]]:
    """Return what waits in parts, at most one for each worker, free or not: one that took all would be waited for."""
    size = -(-len(waiting) // workers)
    return [list(waiting[start : start + size]) for start in range(0, len(waiting), size or 1)]


def _add(phase_seconds: dict[str, float], phase: str, seconds: float) -> None:
    phase_seconds[phase] = phase_seconds.get(phase, 0.0) + seconds


def _ready(refs: Sequence[ray.ObjectRef], timeout: float) -> list[ray.ObjectRef]:
    """Wait until one of some references is there; return all that are, none where none is in `timeout` seconds."""
    ray.wait(refs, timeout=timeout, fetch_local=False)
    return ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)[0]


def _silent_scorers(target: str = "") -> str:
    service = f" {target} takes its time," if is_url(target) else ""
    return (
        f"no scorer has answered for {_SCORER_TIMEOUT_SECONDS:.0f} s: one hangs (see the dashboard),{service} or "
        "judges are too slow for what is asked at once: adversary.groups, adversary.group_size"
    )

"""Whether the adversary's loop keeps up with 64 runners: all that needs an accelerator is a stand-in, the loop is real.

python -m tests.benchmarks.adversary_scale [--runners 64] [--iterations 3]

Engines, scoring models and learners sleep for as long as their work would take, and hand on what is as large as its
results. What runs between them is what ships: the algorithm, the reward worker, RLlib's groups, Ray, on this machine.
Every runner has the same work at any number of runners; scorers are added with them, one for eight, and learners are
taken to be. So an ideal iteration takes what the sleeps in it take, and the rest of an iteration is the loop's own.
Whatever the driver serialises, reads or keeps is counted, to see that rollouts do not pass through it.
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import ray
from ray.util import deregister_serializer, register_serializer

from actors import grpo
from actors.config import AdversaryConfig
from actors.engine import Completion
from actors.env_runner import Rollout, Share, Task
from actors.grpo import GRPO, GRPOConfig
from actors.reward_worker import RewardWorker
from actors.scorer import Meaning
from cluster.connect import connect
from cluster.resources import ResourcePlan
from guardrail.intent import Limits
from guardrail.seeds import embedded_seeds

# A runner's share of an iteration: 128 completions, past the 100 KB up to which Ray would send results to the driver.
GROUPS, GROUP_SIZE, PROMPT_TOKENS, NEW_TOKENS = 16, 8, 160, 96
EMBEDDING = 384
WEIGHTS = 4_000_000  # float32 numbers that are sent to the engines
RUNNERS_PER_SCORER = 8
#: Seconds that a phase takes; for scoring, those that the models take over the rollouts of one runner.
SECONDS = {"generate": 6.0, "score": 0.1, "update": 4.0, "sync": 0.5}
# What may grow with the number of runners at the driver: for each, a thousandth of the rollouts that it brings in one
# object (a count, say), and a tenth in all (its tasks, calls and answers).
OBJECT_GROWTH, ALL_GROWTH = 0.001, 0.1


def ideal_seconds(runners: int) -> float:
    """Return what an iteration takes if nothing but the stand-ins takes time."""
    return sum(SECONDS.values()) + (min(runners, RUNNERS_PER_SCORER) - 1) * SECONDS["score"]


# --- the stand-ins ----------------------------------------------------------------------------------------------------
# All that is known here of the algorithm's inside is in this section. A runner imports neither torch nor RLlib, and its
# configuration and tasks reach it as plain namespaces: 64 processes with torch in them would take 16 GiB.


class TimedRunner:
    """In the place of `VLLMEnvRunner`: sleeps, and returns rollouts of the usual size."""

    config = SimpleNamespace(enable_env_runner_and_connector_v2=True, is_multi_agent=False)

    def __init__(self, *, worker_index: int, **_: Any) -> None:
        self.worker_index = worker_index

    def apply(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        return func(self, *args, **kwargs)

    def ping(self) -> str:
        return "pong"

    def assert_healthy(self) -> None:
        """Be healthy."""

    def get_spaces(self) -> dict[str, Any]:
        import gymnasium

        space: Any = gymnasium.spaces.Discrete(2)
        return {"__env__": (space, space), "default_policy": (space, space)}

    def sample(self, *, tasks: Sequence[Any], seed: int, **__: Any) -> tuple[Sequence[Any], list[tuple[Any, ...]]]:
        begun, random = time.monotonic(), np.random.default_rng(seed)
        rollouts: list[tuple[Any, ...]] = []
        for task in tasks:
            words = task.text.split()
            prompt = random.integers(49152, size=PROMPT_TOKENS).tolist()
            for _ in range(GROUP_SIZE):
                tokens = random.integers(49152, size=NEW_TOKENS).tolist()
                logprobs = random.standard_normal(NEW_TOKENS).astype(np.float32)
                text = " ".join(random.choice(words, size=40))
                rollouts.append((prompt, tokens, logprobs, text))
        time.sleep(max(0.0, SECONDS["generate"] - (time.monotonic() - begun)))
        return tasks, rollouts

    def set_state(self, state: Mapping[str, Any]) -> None:
        if "rl_module" in state:
            time.sleep(SECONDS["sync"])

    def probe(self, token_ids: Sequence[Sequence[int]]) -> list[np.ndarray]:
        return [np.zeros(len(ids) - 1) for ids in token_ids]

    def get_state(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {}

    def get_metrics(self) -> dict[str, Any]:
        return {}

    def stop(self) -> None:
        """Stop nothing."""


class TimedModels:
    """In the place of `Scorer`: sleeps, and has an opinion at random."""

    threshold = 0.5
    intent = SimpleNamespace(limits=Limits(0.5, 0.5, 0.5), asks_harm=lambda texts: np.zeros(len(texts)))

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)

    def set_target(self, target: str, verdicts: Path) -> None:
        """Look at no target."""

    def meaning(self, goals: Sequence[str], attacks: Sequence[str]) -> Meaning:
        begun, count = time.monotonic(), len(attacks)
        intent, similarity = self.random.random((2, count))
        embeddings = self.random.standard_normal((count, EMBEDDING), dtype=np.float32)
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        runners = count / (GROUPS * GROUP_SIZE)
        time.sleep(max(0.0, SECONDS["score"] * runners - (time.monotonic() - begun)))
        return Meaning(intent, similarity, embeddings)

    def fluency(self, texts: Sequence[str]) -> np.ndarray:
        return np.full(len(texts), -5.0)

    def verdicts(self, attacks: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        unsafe = self.random.random(len(attacks))
        return unsafe, unsafe >= self.threshold


class TimedRewardWorker(RewardWorker):
    """`RewardWorker` as it is, with the models and the runners' rollouts replaced."""

    def __init__(self, config: Any, judges: Sequence[Any] = ()) -> None:
        self.config, self.judges = config, judges
        self.scorer: Any = TimedModels()
        self._setup = self._archive = None

    def _read(self, share: Any) -> Share:
        tasks, rollouts = ray.get(share)
        return tasks, [
            Rollout(prompt, Completion(tokens, logprobs, text, finished=True), weights_version=0)
            for prompt, tokens, logprobs, text in rollouts
        ]


class TimedLearner:
    """In the place of `GRPOLearner`, in an actor of RLlib's `LearnerGroup`: reads its batch, sleeps."""

    framework = "torch"

    def __init__(self, **_: Any) -> None:
        from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule

        self.weights = np.zeros(WEIGHTS, dtype=np.float32)
        self.module = MultiRLModule(rl_module_specs={})  # RLlib asks for its parts when a runner comes back

    def apply(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        return func(self, *args, **kwargs)

    def _set_learner_index_and_placement_group(self, **_: Any) -> None:
        """Need neither."""

    def build(self) -> None:
        """Build nothing."""

    def update(self, *, training_data: Any, **_: Any) -> dict[str, Any]:
        training_data.solve_refs()
        assert training_data.batch is not None, "the learner was given nothing"
        time.sleep(SECONDS["update"])
        return {}

    def get_state(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {"rl_module": {"default_policy": {"weights": self.weights}}, "weights_seq_no": 1}

    def probe(self, token_ids: Sequence[Sequence[int]]) -> tuple[list[np.ndarray], float]:
        return [np.zeros(len(ids) - 1) for ids in token_ids], 0.0


@contextmanager
def started(runners: int, resources: Mapping[str, float] | None = None) -> Iterator[GRPO]:
    """Have the algorithm with a stand-in in every place, ready for its first iteration.

    Args:
        runners: how many.
        resources: custom ones that a runner takes.
    """
    adversary = AdversaryConfig(
        env_runners=runners,
        learners=1,
        groups=GROUPS * runners,
        group_size=GROUP_SIZE,
        max_new_tokens=NEW_TOKENS,
        warm_start=0,
    )
    tiny = ResourcePlan(**{field.name: 0.001 for field in dataclasses.fields(ResourcePlan)})
    tiny = dataclasses.replace(tiny, env_runner_gpus=0.0, learner_gpus=0.0, guard_worker_gpus=0.0)
    config = GRPOConfig.of(adversary, tiny, seed=0)
    config = config.env_runners(env_runner_cls=TimedRunner, custom_resources_per_env_runner=dict(resources or {}))
    config = config.training(learner_class=TimedLearner)
    register_serializer(GRPOConfig, serializer=lambda _: {}, deserializer=lambda _: SimpleNamespace())
    register_serializer(Task, serializer=dataclasses.asdict, deserializer=lambda fields: SimpleNamespace(**fields))
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(grpo, "RewardWorker", TimedRewardWorker):
        algorithm = config.build_algo()
        try:
            algorithm.start_round(1, embedded_seeds(), "no target", folder, iterations=1000)
            yield algorithm
        finally:
            algorithm.stop()
            for replaced in (GRPOConfig, Task):
                deregister_serializer(replaced)


# --- the measurement --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Measured:
    """An iteration with a number of runners.

    Attributes:
        seconds: median.
        phases: seconds, of the last iteration.
        objects: sizes of what the driver serialised or read in the last iteration, in bytes.
        kept: bytes of results that Ray kept in the driver's process, the most there were in the last iteration.
    """

    runners: int
    seconds: float
    phases: dict[str, float]
    objects: list[int]
    kept: int

    @property
    def efficiency(self) -> float:
        """Return iterations per second over those of an ideal loop."""
        return ideal_seconds(self.runners) / self.seconds

    @property
    def bytes_per_runner(self) -> float:
        """Return what passes through the driver for each runner."""
        return (sum(self.objects) + self.kept) / self.runners


@contextmanager
def driver_objects() -> Iterator[list[int]]:
    """Collect the sizes of all objects that this process serialises (arguments, puts) or reads (gets), in bytes.

    Without the weights: they are the learner's, go to all runners as one object, and are the same for any number.
    """
    context = ray._private.worker.global_worker.get_serialization_context()
    serialize, deserialize = context.serialize, context.deserialize_objects
    sizes: list[int] = []

    def count(size: int) -> None:
        if size < 4 * WEIGHTS:
            sizes.append(size)

    def counting_serialize(value: Any) -> Any:
        serialized = serialize(value)
        count(serialized.total_bytes)
        return serialized

    def counting_deserialize(objects: Sequence[Any], *rest: Any) -> Any:
        for data, *_ in objects:
            count(len(data) if data else 0)
        return deserialize(objects, *rest)

    context.serialize, context.deserialize_objects = counting_serialize, counting_deserialize
    try:
        yield sizes
    finally:
        del context.serialize, context.deserialize_objects


class KeptResults(threading.Thread):
    """Watches how much Ray keeps in this process: results up to 100 KB come here whether they are read or not."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self.over = 0, threading.Event()

    def run(self) -> None:
        core = ray._private.worker.global_worker.core_worker
        while not self.over.wait(0.05):
            self.most = max(self.most, core.get_local_memory_store_bytes_used())

    def __enter__(self) -> "KeptResults":
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.over.set()
        self.join()


def measure(runners: int, iterations: int) -> Measured:
    """Run `iterations` after one that does not count."""
    seconds = []
    with started(runners) as algorithm:
        algorithm.train()
        for _ in range(iterations):
            with driver_objects() as objects, KeptResults() as kept:
                begun = time.monotonic()
                algorithm.train()
                seconds.append(time.monotonic() - begun)
        return Measured(runners, float(np.median(seconds)), algorithm.phase_seconds, objects, kept.most)


def rollout_bytes() -> int:
    """Return the size of a runner's share of rollouts."""
    context = ray._private.worker.global_worker.get_serialization_context()
    with mock.patch.dict(SECONDS, generate=0.0):
        tasks = [SimpleNamespace(text=seed["text"]) for seed in embedded_seeds()[:GROUPS]]
        _, rollouts = TimedRunner(worker_index=0).sample(tasks=tasks, seed=0)
    return context.serialize(rollouts).total_bytes


def main() -> None:
    """Measure one runner, a few and many, print the table and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runners", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=3)
    arguments = parser.parse_args()
    many = arguments.runners
    with connect(num_cpus=os.cpu_count()):
        share = rollout_bytes()
        measured = [measure(runners, arguments.iterations) for runners in sorted({1, max(1, many // 8), many})]
    print("runners  ideal s  measured s  efficiency  largest object  KB per runner  phases")
    for row in measured:
        phases = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in row.phases.items())
        print(
            f"{row.runners:7d} {ideal_seconds(row.runners):8.2f} {row.seconds:11.2f} {row.efficiency:11.3f} "
            f"{max(row.objects):15,d} {row.bytes_per_runner / 1e3:14.1f}  {phases}"
        )
    print(
        f"a runner's rollouts are {share / 1e3:.0f} KB; the objects are those of the driver in one iteration, in bytes"
    )
    few, most = measured[0], measured[-1]
    added = max(1, most.runners - few.runners)
    object_growth = (max(most.objects) - max(few.objects)) / added
    grows = object_growth > OBJECT_GROWTH * share or most.bytes_per_runner > ALL_GROWTH * share
    figures = {
        f"efficiency_{many}_runners": round(most.efficiency, 4),
        "driver_objects_grow_with_runners": grows,
        "largest_driver_object_bytes": {row.runners: max(row.objects) for row in measured},
        "largest_driver_object_bytes_for_each_more_runner": round(object_growth),
        "driver_bytes_per_runner": {row.runners: round(row.bytes_per_runner) for row in measured},
        "rollout_bytes_per_runner": share,
        "seconds": {row.runners: round(row.seconds, 3) for row in measured},
        "ideal_seconds": {row.runners: round(ideal_seconds(row.runners), 3) for row in measured},
    }
    print(json.dumps(figures))
    if grows:
        sys.exit("an object of the driver grows with the number of runners; see the table")


if __name__ == "__main__":
    main()

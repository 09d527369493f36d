"""The attacker's env runner: owns one vLLM engine and turns tasks into groups of rollouts.

A one-step environment: the observation is a prompt made from a goal and a style, the action is the completion.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import ray
import torch
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.env import INPUT_ENV_SPACES
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from actors.config import AdversaryConfig
from actors.engine import Completion, Engine, memory_share
from actors.styles import STYLE
from guardrail.models import resolve

#: RLlib wants spaces; prompts and completions are token lists, so these stand in.
SPACE: gym.Space = gym.spaces.Discrete(2)


@dataclasses.dataclass(frozen=True)
class Task:
    """A goal to attack with, in a style; `group` numbers the group its rollouts form, `goal` the round's goals."""

    group: int
    goal: int
    text: str
    style: str


class StaleWeightsError(RuntimeError):
    """An attacker died and came back, and has not been sent the weights since."""


@dataclasses.dataclass(frozen=True)
class Rollout:
    """One completion of a task's prompt, and the version of the weights that it was sampled with."""

    prompt_ids: list[int]
    completion: Completion
    weights_version: int


#: What a runner hands on: its tasks, so that nobody must keep them beside a reference, and their rollouts.
Share: TypeAlias = tuple[Sequence[Task], Sequence[Rollout]]


class VLLMEnvRunner(EnvRunner):
    """Samples groups of completions; its weights are the base model's plus what the learners last sent."""

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        self.adversary: AdversaryConfig = config.adversary
        self.weights_version = 0
        self.engine = Engine(
            resolve(self.adversary.model),
            max_tokens=self.adversary.max_prompt_tokens + self.adversary.max_new_tokens,
            seed=config.seed or 0,
            gpu_memory=memory_share(self.adversary.gpu_memory, config.num_gpus_per_env_runner),
            kv_cache_gib=self.adversary.kv_cache_gib,
            dtype="float32",  # the learner's: in bf16 the probe's bound cannot hold
        )

    def __repr__(self) -> str:
        return f"attacker-{self.worker_index}"  # the name the dashboard shows

    def assert_healthy(self) -> None:
        """Raise if the engine is not there."""
        assert self.engine is not None

    def get_spaces(self) -> dict[str, tuple[gym.Space, gym.Space]]:
        """Return the stand-in spaces."""
        return {INPUT_ENV_SPACES: (SPACE, SPACE), DEFAULT_MODULE_ID: (SPACE, SPACE)}

    def sample(self, *, tasks: Sequence[Task], seed: int, at_least: int = 0, **_: Any) -> Share:
        """Return the tasks with `group_size` rollouts for each, those of a task in a row.

        Raises:
            StaleWeightsError: the weights in use are older than version `at_least`.
        """
        if self.weights_version < at_least:
            raise StaleWeightsError(f"{self} has weights of version {self.weights_version}, not {at_least}")
        prompts = [self.engine.encode(STYLE[task.style].prompt(task.text)) for task in tasks]
        self.engine.reseed(seed)
        groups = self.engine.generate(
            prompts,
            n=self.adversary.group_size,
            max_new_tokens=self.adversary.max_new_tokens,
            temperature=self.adversary.temperature,
        )
        rollouts = [
            Rollout(ids, completion, self.weights_version)
            for ids, group in zip(prompts, groups, strict=True)
            for completion in group
        ]
        return tasks, rollouts

    def probe(self, token_ids: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Return the engine's log-probabilities of fixed token ids, to be compared with the learner's."""
        return self.engine.prompt_logprobs(token_ids)

    def get_state(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Return the number of the weights in use; the weights themselves are the learner's to save."""
        return {WEIGHTS_SEQ_NO: self.weights_version}

    def set_state(self, state: dict[str, Any]) -> None:
        """Take over weights from the learners; keys that are missing mean no change."""
        if COMPONENT_RL_MODULE in state:
            weights = state[COMPONENT_RL_MODULE]
            if isinstance(weights, ray.ObjectRef):  # one copy in the object store for all runners
                weights = ray.get(weights)
            weights = weights.get(DEFAULT_MODULE_ID, weights)
            self.engine.load_weights({name: torch.from_numpy(np.array(array)) for name, array in weights.items()})
            self.weights_version = state.get(WEIGHTS_SEQ_NO, self.weights_version)

    def get_metrics(self) -> Any:
        """Return RLlib's metrics of this runner."""
        return self.metrics.reduce()

    def stop(self) -> None:
        """Release the engine."""
        del self.engine

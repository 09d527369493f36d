"""GRPO as an RLlib algorithm: vLLM env runners sample groups, rewards are relative to the group, learners update.

One iteration reads top to bottom in `GRPO.training_step`.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from transformers import AutoTokenizer

from actors.archive import category_of
from actors.config import AdversaryConfig, CurriculumConfig
from actors.curriculum import Curriculum
from actors.engine import memory_share
from actors.env_runner import SPACE, Task, VLLMEnvRunner
from actors.errors import DEATHS
from actors.goals import Goals
from actors.judges import Judge
from actors.learner import GRPOLearner
from actors.module import CausalLMModule
from actors.reward_worker import RewardWorker, RoundSetup
from actors.rollouts import RUNNER_TIMEOUT_SECONDS, Asked, Rollouts, scorers_say, timed
from actors.styles import chosen
from actors.summary import Summary
from actors.weight_sync import WeightSync
from cluster.resources import ResourcePlan, num_scorers
from guardrail.models import resolve
from guardrail.records import Record

_PROBE = "The quick brown fox jumps over the lazy dog, and nobody asks why it would."
_ANSWER_TIMEOUT_SECONDS = 60.0
_EVEN = CurriculumConfig(floor=1.0)
_RESTARTED_TASKS = 3  # how often Ray asks again what an actor died at


class GRPOConfig(AlgorithmConfig):
    """RLlib configuration of `GRPO`; `GRPOConfig.of` builds it from an `AdversaryConfig`."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or GRPO)
        self.adversary = AdversaryConfig()
        self.objective = self.adversary.objective
        self.warmup_samples = 0
        self.rows = 1
        self.microbatch: int | None = None
        self.group_size = 2
        self.max_new_tokens = 1
        self.scorer_cpus = 1.0
        self.judge_gpus = 0.0

    @classmethod
    def of(cls, adversary: AdversaryConfig, plan: ResourcePlan, seed: int) -> "GRPOConfig":
        """Return the configuration for an adversary on the resources of `plan`."""
        config = cls()
        config.adversary = adversary
        config.objective = adversary.objective
        samples = adversary.groups * adversary.group_size
        config.warmup_samples = adversary.warmup_iterations * samples
        config.rows, config.microbatch = adversary.minibatch // max(1, adversary.learners), adversary.microbatch
        config.group_size = adversary.group_size
        config.max_new_tokens = adversary.max_new_tokens
        config.scorer_cpus = plan.scorer_cpus
        config.judge_gpus = plan.env_runner_gpus
        config._dont_auto_sync_env_runner_states = True  # runners hold no state but the weights they are sent
        return (
            config.environment(observation_space=SPACE, action_space=SPACE)
            .env_runners(
                env_runner_cls=VLLMEnvRunner,
                num_env_runners=adversary.env_runners,
                num_cpus_per_env_runner=plan.env_runner_cpus,
                num_gpus_per_env_runner=plan.env_runner_gpus,
                create_local_env_runner=False,
                validate_env_runners_after_construction=True,
            )
            .learners(
                num_learners=adversary.learners,
                num_cpus_per_learner=plan.learner_cpus if adversary.learners else 0,
                num_gpus_per_learner=plan.learner_gpus,
            )
            .training(lr=adversary.learning_rate, grad_clip=adversary.grad_clip, grad_clip_by="global_norm")
            .fault_tolerance(restart_failed_env_runners=True)
            .debugging(seed=seed, log_level="ERROR")
        )

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """Return the policy: a causal LM with trainable top layers."""
        return RLModuleSpec(
            module_class=CausalLMModule,
            model_config={
                "model": self.adversary.model,
                "trainable_layers": self.adversary.trainable_layers,
                "lora_rank": self.adversary.lora_rank,
                "temperature": self.adversary.temperature,
            },
        )

    def get_default_learner_class(self) -> type:
        """Return the learner with the GRPO loss."""
        return GRPOLearner


class GRPO(Algorithm):
    """Attackers that learn what the guard gets wrong.

    `start_round` sets what is attacked; each `train()` is one iteration, of which `summary`, `sync` and `phase_seconds`
    then tell.
    """

    @classmethod
    def get_default_config(cls) -> GRPOConfig:
        """Return a configuration without adversary settings; RLlib asks for it."""
        return GRPOConfig()

    def setup(self, config: GRPOConfig) -> None:
        """Start RLlib's runners and learners, the scorers and the judges."""
        adversary = self.config.adversary
        self.sync: dict[str, float] = {}
        self.phase_seconds: dict[str, float] = {}
        self.styles = chosen(adversary.styles)
        self.curriculum = Curriculum(adversary.curriculum, self.styles)
        self.summary: Summary | None = None
        self._ahead: Asked | None = None
        self._samples, self._weights_version, self._iteration_in_round = 0, 0, 0
        # The plan leaves one CPU whole, and parts of Ray Data need it: judges ask for none.
        # One that dies of what it is asked dies of it again: the run must end, not wait.
        restarted = {"max_restarts": -1, "max_task_retries": _RESTARTED_TASKS}
        self._judges = [
            ray.remote(Judge)
            .options(num_cpus=0, num_gpus=self.config.judge_gpus, **restarted)
            .remote(
                judge.model,
                judge.format,
                max_tokens=judge.max_tokens,
                kv_cache_gib=adversary.kv_cache_gib,
                gpu_memory=memory_share(adversary.gpu_memory, self.config.judge_gpus),
            )
            for judge in adversary.judges
        ]
        # The name the dashboard shows; names are unique in a cluster, and others may run the loop on it too.
        name = f"scorer-{ray.get_runtime_context().get_job_id()}-{time.monotonic_ns():x}"
        self._workers = [
            ray.remote(RewardWorker)
            .options(name=f"{name}-{number}", num_cpus=self.config.scorer_cpus, **restarted)
            .remote(adversary, self._judges)
            for number in range(num_scorers(adversary.env_runners))
        ]
        super().setup(config)
        # What keeps one from starting is said here, not taken for a death later.
        try:
            ray.get([actor.__ray_ready__.remote() for actor in (*self._workers, *self._judges)])
        except DEATHS as error:
            raise ValueError(f"a scorer or judge cannot start: {str(error).strip().splitlines()[-1]}") from error
        self._tokenizer = AutoTokenizer.from_pretrained(resolve(adversary.model))
        probe_ids = [self._tokens(_PROBE), self._tokens(self.styles[0].prompt(_PROBE))]
        self.weight_sync = WeightSync(self, probe_ids, adversary.max_probe_difference, RUNNER_TIMEOUT_SECONDS)
        self.rollouts = Rollouts(self.env_runner_group, self._workers, self.weight_sync)

    def _tokens(self, text: str) -> list[int]:
        return self._tokenizer(text)["input_ids"]

    def start_round(
        self,
        round_index: int,
        goals: Sequence[Record],
        target: str,
        directory: str,
        *,
        target_version: str = "",
        attacker_version: str = "",
        earlier: Sequence[tuple[str, str, str, str]] = (),
        iterations: int,
        learn: bool = True,
        done: int = 0,
    ) -> None:
        """Attack another guard.

        Args:
            round_index: of the loop; seeds what is drawn and sampled.
            goals: records to attack with; `goals_left_out` then says how many cannot be used, and why.
            target: guard directory or URL.
            directory: where attempts and the archive are written; all nodes see it.
            target_version, attacker_version: names that the records of attempts get.
            earlier: (category, style, id, text) of earlier successes, for novelty.
            iterations: of the round.
            learn: whether attempts change policy and curriculum; if not, they measure them.
            done: iterations of the round that a checkpoint holds, which is restored next.

        Raises:
            ValueError: no goals of one of the labels are left.
        """
        adversary = self.config.adversary
        self._goals = Goals(
            goals,
            self.styles,
            lambda prompt: len(self._tokens(prompt)),
            adversary.max_prompt_tokens,
            adversary.benign_share,
        )
        self._round_index = round_index
        setup = RoundSetup(
            round_index, self._goals.records, target, target_version, attacker_version, directory, list(earlier)
        )
        self.rollouts.start_round(setup, done)
        self._learn, self._iterations, self._iteration_in_round = learn, iterations, done
        if learn:
            self.curriculum.new_guard()
        self._ahead = None

    @property
    def goals_left_out(self) -> dict[str, int]:
        """How many of the round's goals cannot be used, by reason."""
        return self._goals.left_out

    def training_step(self) -> None:
        """Draw tasks, generate, score, reward, update, and send the new weights to the engines."""
        self.sync = {}
        self.phase_seconds = self.rollouts.phase_seconds = {}  # new ones: readers keep those of iterations before
        summary, batches = self.rollouts.gather(
            self._ahead or self._ask(),
            self._iteration_in_round,
            learners=max(1, self.config.adversary.learners),
            weights_version=self._weights_version,
        )
        diversity = self.rollouts.diversity(self._iteration_in_round)  # while learners update
        if self._learn:
            self._samples += summary.attempts
            for (category, style), counts in summary.cells.items():
                self.curriculum.record(category, style, *counts)
        self._iteration_in_round += 1
        more = self._iteration_in_round < self._iterations
        self._ahead = self._ask() if more and self.config.adversary.generate_ahead else None
        if self._learn and summary.learnable:
            with timed(self.phase_seconds, "update"):
                self._update(batches)
            if self._ahead:
                self._ahead.wait()  # engines take weights between two calls
            with timed(self.phase_seconds, "sync"):
                self.sync = self.weight_sync.send()
        self.summary = dataclasses.replace(summary, diversity=scorers_say(diversity))

    def _seed(self) -> int:
        # A function of configuration, round and iteration alone: a resumed run draws what the first one drew.
        return ((self.config.seed or 0) * 1000 + self._round_index) * 1000 + self._iteration_in_round

    def _ask(self) -> Asked:
        """Draw this iteration's tasks and have the runners generate."""
        adversary, seed = self.config.adversary, self._seed()
        random = np.random.default_rng(seed)
        # Guards that are measured are to be measured on the same mix, whatever worked against another.
        curriculum = self.curriculum if self._learn else Curriculum(_EVEN, self.styles)
        goals = self._goals.draw(adversary.groups, random, weigh=curriculum.category_weights)
        records = [self._goals.records[i] for i in goals]
        styles = curriculum.draw([category_of(record) for record in records], random)
        tasks = [
            Task(group, goal, record["text"], style.name)
            for group, (goal, record, style) in enumerate(zip(goals, records, styles, strict=True))
        ]
        return self.rollouts.ask(tasks, seed)

    def _update(self, batches: Sequence[ray.ObjectRef]) -> None:
        """Update the policy on a batch for each learner."""
        results = self.learner_group.update(
            batch_refs=list(batches),
            timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: self._samples},
            num_epochs=1,
            minibatch_size=self.config.rows,
        )
        self.metrics.aggregate(results, key="learners")
        self._weights_version += 1

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return RLlib's state and the adversary's own; with it the next step is the one there would have been."""
        own = {name: getattr(self, name) for name in _OWN_STATE}
        return {**super().get_state(*args, **kwargs), "adversary": own | {"curriculum": self.curriculum.get_state()}}

    def set_state(self, state: Any) -> None:
        """Take over what `get_state` returned; a key that is missing means no change."""
        super().set_state({key: value for key, value in state.items() if key != "adversary"})
        if own := dict(state.get("adversary", {})):
            self.curriculum.set_state(own.pop("curriculum"))
            for name, value in own.items():
                setattr(self, name, value)

    def replace_dead_learners(self) -> bool:
        """Build new learners if one of them died, to be given a checkpoint's weights; return whether one had."""
        group: Any = self.learner_group
        learners = group._workers or []  # None where the learner is in this process
        if not any(_died(learner) for learner in learners):
            return False
        for learner in learners:
            ray.kill(learner)  # the others wait for the dead one's gradients
        group.shutdown()
        self.learner_group: Any = self.config.build_learner_group(
            rl_module_spec=self.config.get_multi_rl_module_spec(spaces={DEFAULT_MODULE_ID: (SPACE, SPACE)})
        )
        return True

    def cleanup(self) -> None:
        """Stop runners, learners, reward workers and judges."""
        super().cleanup()
        for actor in (*self._workers, *self._judges):
            ray.kill(actor)


#: What a checkpoint holds of the adversary beside RLlib's state and the curriculum.
_OWN_STATE = ("_samples", "_weights_version", "_iteration_in_round")


def _died(actor: Any) -> bool:
    try:
        ray.get(actor.__ray_ready__.remote(), timeout=_ANSWER_TIMEOUT_SECONDS)
    except DEATHS:
        return True
    except GetTimeoutError:
        pass  # it lives, and waits for one that does not
    return False

"""GRPO as an RLlib algorithm: vLLM env runners sample groups, rewards are relative to the group, learners update.

One iteration reads top to bottom in `GRPO.training_step`.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.policy.sample_batch import MultiAgentBatch
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME

from actors import rewards
from actors.archive import Archive
from actors.config import AdversaryConfig
from actors.env_runner import SPACE, Rollout, Task, VLLMEnvRunner
from actors.gate import Attempt, rejection
from actors.learner import Group, GRPOLearner, group_advantages, train_batch
from actors.module import CausalLMModule
from actors.scorer import Scorer
from actors.styles import STYLE, STYLES, cleaned
from cluster.resources import ResourcePlan
from guardrail.models import resolve
from guardrail.records import Record
from guardrail.taxonomy import may_generate

logger = logging.getLogger(__name__)

_PROBE = "The quick brown fox jumps over the lazy dog, and nobody asks why it would."
_RUNNER_TIMEOUT_SECONDS = 600.0


class GRPOConfig(AlgorithmConfig):
    """RLlib configuration of `GRPO`; `GRPOConfig.of` builds it from an `AdversaryConfig`."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or GRPO)
        self.adversary = AdversaryConfig()
        self.model_path = ""
        self.clip_param = 0.2
        self.kl_coefficient = 0.0
        self.max_new_tokens = 1
        self.scorer_cpus = 1.0

    @classmethod
    def of(cls, adversary: AdversaryConfig, plan: ResourcePlan, seed: int) -> "GRPOConfig":
        """Return the configuration for an adversary on the resources of `plan`."""
        config = cls()
        config.adversary = adversary
        config.model_path = resolve(adversary.model)
        config.clip_param = adversary.clip
        config.kl_coefficient = adversary.kl_coefficient
        config.max_new_tokens = adversary.max_new_tokens
        config.scorer_cpus = plan.scorer_cpus
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
                "model": self.model_path,
                "trainable_layers": self.adversary.trainable_layers,
                "temperature": self.adversary.temperature,
            },
        )

    def get_default_learner_class(self) -> type:
        """Return the learner with the GRPO loss."""
        return GRPOLearner


class WeightSyncError(RuntimeError):
    """The engines' log-probabilities differ from the learner's after weights were sent."""


class GRPO(Algorithm):
    """Attackers that learn what the guard gets wrong.

    `start_round` sets what is attacked; each `train()` is one iteration; `attempts` collects every attempt as a row.
    """

    @classmethod
    def get_default_config(cls) -> GRPOConfig:
        """Return a configuration without adversary settings; RLlib asks for it."""
        return GRPOConfig()

    def setup(self, config: GRPOConfig) -> None:
        """Start the scorer, then RLlib's runners and learners."""
        adversary = self.config.adversary
        job = ray.get_runtime_context().get_job_id()
        # The name the dashboard shows; names are unique in a cluster, and others may run the loop on it too.
        scorer = ray.remote(Scorer).options(name=f"scorer-{job}", num_cpus=self.config.scorer_cpus)
        self.scorer = scorer.remote(resolve(adversary.embedder), self.config.model_path)
        self.attempts: list[dict[str, Any]] = []
        self.syncs: list[dict[str, float]] = []
        self.phase_seconds: dict[str, float] = {}
        self.generated_tokens = 0
        super().setup(config)
        tokenizer = self._module_tokenizer()
        self._probe_ids = [tokenizer(_PROBE)["input_ids"], tokenizer(STYLES[0].prompt(_PROBE))["input_ids"]]

    def _module_tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.config.model_path)

    def start_round(self, round_index: int, goals: Sequence[Record], guard: str, archive: Sequence[str]) -> None:
        """Attack another guard.

        Args:
            round_index: of the loop; seeds what is drawn and sampled.
            goals: records to attack with; those that must never be generated from are left out here.
            guard: directory of the guard.
            archive: texts of earlier successes, for novelty.

        Raises:
            ValueError: no goals of one of the labels are left.
        """
        allowed = [goal for goal in goals if may_generate(goal["categories"])]
        self._goals = {label: [g for g in allowed if g["unsafe"] is label] for label in (True, False)}
        if not self._goals[True] or (not self._goals[False] and self.config.adversary.benign_share > 0):
            raise ValueError("the adversary needs goals of both labels")
        self._round, self._iteration_in_round = round_index, 0
        self.archive = Archive(self.config.adversary.archive_size)
        if archive:
            self.archive.add(ray.get(self.scorer.embed.remote(list(archive))))
        self._threshold = ray.get(self.scorer.set_guard.remote(guard))
        self.attempts, self.syncs, self.phase_seconds, self.generated_tokens = [], [], {}, 0

    def training_step(self) -> None:
        """Draw tasks, generate, score, reward, update, and send the new weights to the engines."""
        seed = self._seed()
        tasks, goals = self._draw(np.random.default_rng(seed))
        rollouts = self._timed("generate", lambda: self._generate(tasks, seed))
        rewarded = self._timed("score", lambda: self._reward(rollouts, goals, tasks))
        updated = self._timed("update", lambda: self._update(rollouts, rewarded))
        if updated:
            self._timed("sync", self._sync)
        self._iteration_in_round += 1

    def _seed(self) -> int:
        # A function of configuration, round and iteration alone: a resumed run draws what the first one drew.
        return ((self.config.seed or 0) * 1000 + self._round) * 1000 + self._iteration_in_round

    def _timed(self, phase: str, call: Any) -> Any:
        start = time.monotonic()
        result = call()
        self.phase_seconds[phase] = self.phase_seconds.get(phase, 0.0) + time.monotonic() - start
        return result

    def _draw(self, random: np.random.Generator) -> tuple[list[Task], list[Record]]:
        """Return one task per group and the goal record of each; styles take turns, categories weigh the same."""
        adversary = self.config.adversary
        benign = round(adversary.groups * adversary.benign_share)
        goals = [*_balanced(self._goals[True], adversary.groups - benign, random)]
        goals += _balanced(self._goals[False], benign, random)
        offset = int(random.integers(len(STYLES)))
        styles = [STYLES[(offset + index) % len(STYLES)].name for index in range(len(goals))]
        random.shuffle(styles)
        return [Task(i, g["text"], s) for i, (g, s) in enumerate(zip(goals, styles, strict=True))], goals

    def _generate(self, tasks: Sequence[Task], seed: int) -> list[Rollout]:
        """Return the rollouts of all tasks; if every engine died, wait for one to come back and ask again."""
        while True:
            group = self.env_runner_group
            runners = group.healthy_env_runner_ids()
            shares = [{"tasks": tasks[i :: len(runners)], "seed": seed + i} for i in range(len(runners))]
            results = group.foreach_env_runner(
                "sample",
                kwargs=shares,
                local_env_runner=False,
                remote_worker_ids=runners,
                timeout_seconds=_RUNNER_TIMEOUT_SECONDS,
            )
            rollouts = [rollout for result in results for rollout in result]
            if len(results) < len(shares):
                logger.warning("%d of %d attackers died; their tasks are lost", len(shares) - len(results), len(shares))
                self._revive()
            if rollouts:
                self.generated_tokens += sum(len(r.completion.token_ids) for r in rollouts)
                return rollouts

    def _revive(self) -> None:
        """Wait until a dead engine is back and give all of them the current weights."""
        deadline = time.monotonic() + _RUNNER_TIMEOUT_SECONDS
        while not self.restore_env_runners(self.env_runner_group):
            if self.env_runner_group.num_healthy_remote_env_runners():
                return  # it comes back on its own and is given weights with the next sync
            if time.monotonic() > deadline:
                raise RuntimeError("no attacker came back; see the dashboard's log of VLLMEnvRunner")
            time.sleep(1.0)
        self._send_weights()

    def _reward(self, rollouts: Sequence[Rollout], goals: Sequence[Record], tasks: Sequence[Task]) -> np.ndarray:
        """Score and gate the rollouts, keep each as an attempt, and return the rewards [len(rollouts)]."""
        adversary = self.config.adversary
        said = [cleaned(r.completion.text) for r in rollouts]
        styles = [STYLE[tasks[r.task].style] for r in rollouts]
        attacks = [s.attack(tasks[r.task].goal, r.completion.text) for s, r in zip(styles, rollouts, strict=True)]
        scores, goal_embeddings = ray.get(
            [self.scorer.score.remote(attacks), self.scorer.embed.remote([goal["text"] for goal in goals])]
        )
        owner = np.array([r.task for r in rollouts])
        unsafe = np.array([goals[i]["unsafe"] for i in owner])
        similarity = (scores.embeddings * goal_embeddings[owner]).sum(axis=1)
        reasons = [
            rejection(
                Attempt(
                    style=styles[i],
                    goal=tasks[r.task].goal,
                    said=said[i],
                    attack=attacks[i],
                    finished=r.completion.finished,
                    similarity=float(similarity[i]),
                    fluency=float(scores.fluency[i]),
                ),
                adversary.gate,
            )
            for i, r in enumerate(rollouts)
        ]
        kept = np.array([reason is None for reason in reasons])
        fooled = (scores.unsafe >= self._threshold) != unsafe
        evaded = rewards.evasion(scores.unsafe, unsafe)
        novel = rewards.novelty(scores.embeddings, self.archive.embeddings, owner)
        reward = rewards.combined(kept, evaded, similarity, novel, adversary.novelty_weight)
        self.archive.add(scores.embeddings[kept & fooled])
        for i in range(len(rollouts)):
            self.attempts.append(
                {
                    "goal": goals[owner[i]],
                    "text": attacks[i],
                    "style": styles[i].name,
                    "action": styles[i].action,
                    "iteration": self._iteration_in_round,
                    "valid": bool(kept[i]),
                    "success": bool(kept[i] and fooled[i]),
                    "rejected": reasons[i],
                    "embedding": scores.embeddings[i],
                    "scores": {
                        "guard": float(scores.unsafe[i]),
                        "similarity": float(similarity[i]),
                        "fluency": float(max(scores.fluency[i], -1e3)),
                        "novelty": float(novel[i]),
                        "reward": float(reward[i]),
                    },
                }
            )
        return reward

    def _update(self, rollouts: Sequence[Rollout], reward: np.ndarray) -> bool:
        """Update the policy on the groups that differ in reward; return whether there was anything to learn from."""
        adversary = self.config.adversary
        size = adversary.group_size
        advantages = group_advantages(reward.reshape(-1, size))
        groups = [
            Group(
                prompt_ids=rollouts[i * size].prompt_ids,
                completions=[r.completion.token_ids for r in rollouts[i * size : (i + 1) * size]],
                logprobs=[r.completion.logprobs for r in rollouts[i * size : (i + 1) * size]],
                advantages=of_group,
            )
            for i, of_group in enumerate(advantages)
        ]
        batch = train_batch(
            groups,
            multiple=adversary.minibatch * max(1, adversary.learners),
        )
        if batch is None:
            return False
        results = self.learner_group.update(
            batch=MultiAgentBatch({DEFAULT_MODULE_ID: batch}, env_steps=len(batch)),
            timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: len(self.attempts)},
            num_epochs=1,
            minibatch_size=adversary.minibatch,
        )
        self.metrics.aggregate(results, key="learners")
        return True

    def _sync(self) -> None:
        """Send the weights to the engines and check by fixed token ids that they compute what the learner computes.

        Raises:
            WeightSyncError: a log-probability differs by more than `max_probe_difference`.
        """
        self._send_weights()
        expected = self.learner_group.foreach_learner(lambda learner, ids=self._probe_ids: learner.probe(ids))
        learner_logprobs, distance = expected.result_or_errors[0].get()
        answers = self.env_runner_group.foreach_env_runner(
            "probe", kwargs={"token_ids": self._probe_ids}, local_env_runner=False
        )
        difference = max(
            float(np.abs(mine - theirs).max())
            for answer in answers
            for mine, theirs in zip(learner_logprobs, answer, strict=True)
        )
        self.syncs.append({"probe_max_abs_logprob_diff": difference, "weight_distance": distance})
        if difference > self.config.adversary.max_probe_difference:
            raise WeightSyncError(
                f"after a weight sync the engines' logprobs differ from the learner's by {difference:.2g}"
            )

    def _send_weights(self) -> None:
        self.env_runner_group.sync_weights(
            from_worker_or_learner_group=self.learner_group, timeout_seconds=_RUNNER_TIMEOUT_SECONDS
        )

    def restored(self) -> None:
        """Give the engines the weights of a checkpoint that was just restored."""
        self._send_weights()

    def cleanup(self) -> None:
        """Stop runners, learners and the scorer."""
        super().cleanup()
        ray.kill(self.scorer)


def _balanced(goals: Sequence[Record], count: int, random: np.random.Generator) -> list[Record]:
    """Draw `count` goals so that each topic weighs the same, without repeating one before all were drawn."""
    by_topic: dict[str, list[Record]] = {}
    for index in random.permutation(len(goals)):
        by_topic.setdefault(goals[index]["source"], []).append(goals[index])
    queues = [by_topic[topic] for topic in sorted(by_topic)]
    random.shuffle(queues)
    drawn: list[Record] = []
    while len(drawn) < count:
        ready = [queue for queue in queues if queue]
        if not ready:
            return drawn + _balanced(goals, count - len(drawn), random)
        drawn += [queue.pop() for queue in ready[: count - len(drawn)]]
    return drawn

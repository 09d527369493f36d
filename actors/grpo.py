"""GRPO as an RLlib algorithm: vLLM env runners sample groups, rewards are relative to the group, learners update.

One iteration reads top to bottom in `GRPO.training_step`.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.policy.sample_batch import MultiAgentBatch
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from transformers import AutoTokenizer

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
from guardrail.seeds import generation_seeds, may_sexualise_minors

logger = logging.getLogger(__name__)

_PROBE = "The quick brown fox jumps over the lazy dog, and nobody asks why it would."
_RUNNER_TIMEOUT_SECONDS = 600.0
_TRIES = 3


class GRPOConfig(AlgorithmConfig):
    """RLlib configuration of `GRPO`; `GRPOConfig.of` builds it from an `AdversaryConfig`."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or GRPO)
        self.adversary = AdversaryConfig()
        self.clip_param = 0.2
        self.kl_coefficient = 0.0
        self.max_new_tokens = 1
        self.scorer_cpus = 1.0

    @classmethod
    def of(cls, adversary: AdversaryConfig, plan: ResourcePlan, seed: int) -> "GRPOConfig":
        """Return the configuration for an adversary on the resources of `plan`."""
        config = cls()
        config.adversary = adversary
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
                "model": self.adversary.model,
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
        self.scorer = scorer.remote(adversary.embedder, adversary.model)
        self.attempts: list[dict[str, Any]] = []
        self.syncs: list[dict[str, float]] = []
        self.phase_seconds: dict[str, float] = {}
        self.generated_tokens = 0
        super().setup(config)
        self._tokenizer = AutoTokenizer.from_pretrained(resolve(adversary.model))
        self._probe_ids = [self._tokens(_PROBE), self._tokens(STYLES[0].prompt(_PROBE))]

    def _tokens(self, text: str) -> list[int]:
        return self._tokenizer(text)["input_ids"]

    def start_round(self, round_index: int, goals: Sequence[Record], guard: str, archive: Sequence[str]) -> None:
        """Attack another guard.

        Args:
            round_index: of the loop; seeds what is drawn and sampled.
            goals: records to attack with; `goals_left_out` then says how many cannot be used, and why.
            guard: directory of the guard.
            archive: texts of earlier successes, for novelty.

        Raises:
            ValueError: no goals of one of the labels are left.
        """
        usable = self._usable(goals)
        self._goals = {label: [g for g in usable if g["unsafe"] is label] for label in (True, False)}
        if not self._goals[True] or (not self._goals[False] and self.config.adversary.benign_share > 0):
            raise ValueError(
                f"the adversary needs unsafe and benign goals: {len(self._goals[True])} and {len(self._goals[False])} "
                f"of {len(goals)} can be used ({_listed(self.goals_left_out)})"
            )
        self._round, self._iteration_in_round = round_index, 0
        self.archive = Archive(self.config.adversary.archive_size)
        if archive:
            self.archive.add(ray.get(self.scorer.embed.remote(list(archive))))
        self._threshold = ray.get(self.scorer.set_guard.remote(guard))
        self.attempts, self.syncs, self.phase_seconds, self.generated_tokens = [], [], {}, 0

    def _usable(self, goals: Sequence[Record]) -> list[Record]:
        """Return the goals an attack can be made of, and count the others in `goals_left_out`."""
        allowed = generation_seeds(goals)
        limit = self.config.adversary.max_prompt_tokens
        usable = [g for g in allowed if all(len(self._tokens(style.prompt(g["text"]))) <= limit for style in STYLES)]
        self.goals_left_out = {
            "not to be generated from": len(goals) - len(allowed),
            "too long for adversary.max_prompt_tokens": len(allowed) - len(usable),
        }
        return usable

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
        """Return the rollouts of all tasks; if every engine died, wait for one to come back and ask again.

        Raises:
            RuntimeError: engines do not answer in time, or die again and again.
        """
        group = self.env_runner_group
        for _ in range(_TRIES):
            runners = group.healthy_env_runner_ids()
            shares = [{"tasks": tasks[i :: len(runners)], "seed": seed + i} for i in range(len(runners))]
            results = group.foreach_env_runner(
                "sample",
                kwargs=shares,
                local_env_runner=False,
                remote_worker_ids=runners,
                timeout_seconds=_RUNNER_TIMEOUT_SECONDS,
            )
            if len(results) < len(shares):
                if set(runners) <= set(group.healthy_env_runner_ids()):  # RLlib takes a late runner for a healthy one
                    raise RuntimeError(
                        f"attackers took longer than {_RUNNER_TIMEOUT_SECONDS:.0f} s to generate; "
                        "ask for less at once: adversary.groups, adversary.group_size or adversary.max_new_tokens"
                    )
                logger.warning("%d of %d attackers died; their tasks are lost", len(shares) - len(results), len(shares))
                self._wait_for_an_engine()
                self._send_and_probe()
            rollouts = [rollout for result in results for rollout in result]
            if rollouts:
                self.generated_tokens += sum(len(r.completion.token_ids) for r in rollouts)
                return rollouts
        raise RuntimeError(f"all attackers died {_TRIES} times in a row; see the log of VLLMEnvRunner in the dashboard")

    def _wait_for_an_engine(self) -> None:
        deadline = time.monotonic() + _RUNNER_TIMEOUT_SECONDS
        while not self.restore_env_runners(self.env_runner_group):
            if self.env_runner_group.num_healthy_remote_env_runners():
                return  # the dead one comes back on its own, and RLlib gives it weights when it does
            if time.monotonic() > deadline:
                raise RuntimeError("no attacker came back; see the log of VLLMEnvRunner in the dashboard")
            time.sleep(1.0)

    def _reward(self, rollouts: Sequence[Rollout], goals: Sequence[Record], tasks: Sequence[Task]) -> np.ndarray:
        """Score and gate the rollouts, keep each as an attempt, and return the rewards [len(rollouts)]."""
        adversary = self.config.adversary
        said = [cleaned(r.completion.text) for r in rollouts]
        styles = [STYLE[tasks[r.task].style] for r in rollouts]
        attacks = [s.attack(tasks[r.task].goal, r.completion.text) for s, r in zip(styles, rollouts, strict=True)]
        withheld = [may_sexualise_minors(attack) for attack in attacks]
        attacks = ["" if hidden else attack for attack, hidden in zip(attacks, withheld, strict=True)]
        scores, goal_embeddings = ray.get(
            [self.scorer.score.remote(attacks), self.scorer.embed.remote([goal["text"] for goal in goals])]
        )
        owner = np.array([r.task for r in rollouts])
        unsafe = np.array([goals[i]["unsafe"] for i in owner])
        similarity = (scores.embeddings * goal_embeddings[owner]).sum(axis=1)
        reasons = [
            "withheld"
            if withheld[i]
            else rejection(
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
        batch = train_batch(groups, multiple=adversary.minibatch * max(1, adversary.learners))
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
        """Send an update's weights to the engines, and enter in `syncs` how well they took them."""
        self.syncs.append(self._send_and_probe())

    def _send_and_probe(self) -> dict[str, float]:
        """Send the weights and check by fixed token ids that the engines compute what the learner computes.

        Returns:
            The largest difference of a log-probability, and the distance of the weights from those at the start.

        Raises:
            WeightSyncError: the difference is more than `max_probe_difference`.
            RuntimeError: engines die again and again.
        """
        expected = self.learner_group.foreach_learner(lambda learner, ids=self._probe_ids: learner.probe(ids))
        learner_logprobs, distance = expected.result_or_errors[0].get()
        for _ in range(_TRIES):
            self._send_weights()
            answers = self.env_runner_group.foreach_env_runner(
                "probe", kwargs={"token_ids": self._probe_ids}, local_env_runner=False
            )
            if answers:
                break
            self._wait_for_an_engine()
        else:
            raise RuntimeError(f"attackers died at {_TRIES} weight syncs in a row; see their log in the dashboard")
        difference = max(
            float(np.abs(mine - theirs).max())
            for answer in answers
            for mine, theirs in zip(learner_logprobs, answer, strict=True)
        )
        if not difference <= self.config.adversary.max_probe_difference:  # NaN is not
            raise WeightSyncError(
                f"after a weight sync the engines' logprobs differ from the learner's by {difference:.2g}"
            )
        return {"probe_max_abs_logprob_diff": difference, "weight_distance": distance}

    def _send_weights(self) -> None:
        self.env_runner_group.sync_weights(
            from_worker_or_learner_group=self.learner_group, timeout_seconds=_RUNNER_TIMEOUT_SECONDS
        )

    def restored(self) -> None:
        """Give the engines the weights of a checkpoint that was just restored."""
        self._send_and_probe()

    def cleanup(self) -> None:
        """Stop runners, learners and the scorer."""
        super().cleanup()
        ray.kill(self.scorer)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items() if count) or "none was left out"


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

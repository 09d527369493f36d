"""The adversary's settings."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from actors.judges import JudgeConfig


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GateConfig(_Settings):
    """What an attempt must satisfy for its label to count as kept."""

    intent_model: str = Field("embedded", description="intent-consistency model: embedded, or a directory of one")
    min_intent: float | None = Field(
        None, ge=0, le=1, description="P(same request) that a rewrite needs; None: the model's own threshold"
    )
    min_similarity: float | None = Field(
        None, ge=-1, le=1, description="cosine to its goal that a rewrite needs; None: the model's own floor"
    )
    max_harm: float | None = Field(
        None, ge=0, le=1, description="P(harm) that the frame of a benign goal may have; None: the model's own limit"
    )
    max_similarity: float = Field(0.985, description="a rewrite closer than this (cosine) is the goal itself")
    min_fluency: float = Field(-13.0, description="mean log-probability of the least likely fifth of its tokens")
    max_words: int = Field(80, ge=1, description="longest attack")


class RewardConfig(_Settings):
    """What the parts of the reward weigh; see actors/rewards.py."""

    kept: float = Field(0.4, ge=0, description="paid for a kept label")
    evasion: float = Field(0.6, ge=0, description="for the guard being wrong")
    novelty: float = Field(0.15, ge=0, description="for distance to the archive and to the rest of the group")
    intent: float = Field(0.3, ge=0, description="short of the gate: for P(same request)")
    similarity: float = Field(0.2, ge=0, description="short of the gate: for being near the goal (cosine)")
    violation: float = Field(0.4, ge=0, description="short of the gate: taken off")


class ObjectiveConfig(_Settings):
    """The loss: GRPO by default; RLOO, clip-higher, length normalisation and flow matching are terms of it."""

    advantage: Literal["grpo", "rloo"] = Field("grpo", description="over the group: (r - mean) / std, or leave-one-out")
    clip: float = Field(0.2, gt=0, description="PPO's clip of the probability ratio, below 1")
    clip_high: float = Field(0.28, gt=0, description="above 1; more than clip keeps rare tokens alive (DAPO)")
    length_normalised: bool = Field(False, description="every completion weighs the same, not every token")
    hold: Literal["kl", "balance"] = Field(
        "kl", description="to the reference: by a KL in the loss, or by trajectory balance, which is flow matching"
    )
    kl_coefficient: float = Field(0.02, ge=0, description="how strongly the policy is held to the frozen reference")
    importance_cap: float | None = Field(
        None, gt=0, description="truncated importance sampling of engine against learner; None: taken as equal"
    )

    @model_validator(mode="after")
    def _balance_is_in_units_of_reward(self) -> "ObjectiveConfig":
        if self.hold == "balance" and self.advantage != "rloo":
            raise ValueError("hold 'balance' weighs rewards as they are: it needs advantage 'rloo'")
        if self.hold == "balance" and self.length_normalised:
            raise ValueError("hold 'balance' is about whole completions: it goes with length_normalised false")
        return self


class CurriculumConfig(_Settings):
    """How harm categories and styles are drawn."""

    floor: float = Field(
        0.3, gt=0, le=1, description="share that all harm categories, and of each all styles, have in equal parts"
    )
    saturated: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="success rate of valid attempts under which a cell hands its share to harder styles",
    )
    min_valid: int = Field(24, ge=1, description="valid attempts at an action's styles before any can be saturated")
    memory: float = Field(0.5, ge=0, le=1, description="what counts against the last guard weigh against the next")


class AdversaryConfig(_Settings):
    """How attackers generate, are rewarded and are updated."""

    model: str = Field("bundled:smollm2-135m-instruct", description="causal LM: bundled name, directory or hub id")
    embedder: str = Field("bundled:all-minilm-l6-v2", description="sentence encoder of novelty and diversity")
    styles: list[str] = Field([], description="names of the styles to attack in; empty: the whole catalogue")
    judges: list[JudgeConfig] = Field([], description="judge models whose vote an attempt needs beside the gate")
    env_runners: int = Field(1, ge=1, description="vLLM engines that generate in parallel")
    learners: int = Field(0, ge=0, description="DDP learners; 0 updates in the driver's process")
    iterations: int = Field(4, ge=1, description="policy updates per round")
    warm_start: int = Field(1, ge=0, description="of the first round: fine-tuning on the policy's own gated best")
    groups: int = Field(13, ge=1, description="goals per iteration")
    group_size: int = Field(4, ge=2, description="completions per goal; advantages are relative to this group")
    max_prompt_tokens: int = Field(192, ge=32, description="longest prompt; goals that need more are left out")
    max_new_tokens: int = Field(36, ge=4, description="longest completion")
    temperature: float = Field(0.7, gt=0, description="of sampling, and of the policy that is optimised")
    trainable_layers: int = Field(
        8, ge=1, description="top layers that are trained; the rest is the frozen reference's"
    )
    lora_rank: int = Field(0, ge=0, description="train low-rank adapters on these layers instead; 0: their weights")
    learning_rate: float = Field(3e-5, gt=0, description="AdamW")
    warmup_iterations: int = Field(
        1,
        ge=0,
        description="over which the learning rate rises from a tenth; those of the warm start count",
    )
    grad_clip: float = Field(1.0, gt=0, description="global norm")
    minibatch: int = Field(4, ge=1, description="groups per optimiser step, of all learners together")
    microbatch: int | None = Field(
        None, ge=1, description="groups that a learner computes at once; None: as many of them as its memory holds"
    )
    generate_ahead: bool = Field(
        False, description="generate while learners update, with weights one version old (but after a restore)"
    )
    benign_share: float = Field(0.3, ge=0, le=1, description="share of goals that are benign, to be over-blocked")
    archive_per_cell: int = Field(40, ge=1, description="successes kept for each category and style")
    gate: GateConfig = GateConfig()
    reward: RewardConfig = RewardConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    curriculum: CurriculumConfig = CurriculumConfig()
    kv_cache_gib: int = Field(1, ge=1, description="the engines' key-value cache on a CPU")
    gpu_memory: float = Field(0.5, gt=0, le=1, description="share of an accelerator's memory an engine takes")
    max_probe_difference: float = Field(1e-3, gt=0, description="largest |logprob difference| a weight sync may leave")

    @model_validator(mode="after")
    def _learners_share_minibatches(self) -> "AdversaryConfig":
        if self.minibatch % max(1, self.learners):
            raise ValueError(f"minibatch ({self.minibatch}) must be a multiple of learners ({self.learners})")
        return self

"""The adversary's settings."""

from pydantic import BaseModel, ConfigDict, Field


class GateConfig(BaseModel):
    """What an attempt must satisfy for its label to count as kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_similarity: float = Field(0.6, description="cosine to the goal under the embedder that a rewrite needs")
    min_overlap: float = Field(0.25, description="share of the goal's content words that a rewrite keeps")
    max_similarity: float = Field(0.985, description="a rewrite closer than this is the goal itself")
    min_fluency: float = Field(-13.0, description="mean log-probability of the least likely fifth of its tokens")
    max_words: int = Field(80, description="longest attack")


class AdversaryConfig(BaseModel):
    """How attackers generate, are rewarded and are updated."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field("bundled:smollm2-135m-instruct", description="causal LM: bundled name, directory or hub id")
    embedder: str = Field("bundled:all-minilm-l6-v2", description="sentence encoder of gate, novelty and diversity")
    env_runners: int = Field(1, ge=1, description="vLLM engines that generate in parallel")
    learners: int = Field(0, ge=0, description="DDP learners; 0 updates in the driver's process")
    iterations: int = Field(4, ge=1, description="policy updates per round")
    groups: int = Field(13, ge=1, description="goals per iteration")
    group_size: int = Field(4, ge=2, description="completions per goal; advantages are relative to this group")
    max_prompt_tokens: int = Field(192, ge=32, description="longest prompt; goals that need more are left out")
    max_new_tokens: int = Field(36, ge=4, description="longest completion")
    temperature: float = Field(0.7, gt=0, description="of sampling, and of the policy that is optimised")
    trainable_layers: int = Field(
        8, ge=1, description="top layers that are trained; the rest is the frozen reference's"
    )
    learning_rate: float = Field(3e-5, gt=0, description="AdamW")
    grad_clip: float = Field(1.0, gt=0, description="global norm")
    minibatch: int = Field(4, ge=1, description="groups per optimiser step")
    clip: float = Field(0.2, gt=0, description="PPO's ratio clip")
    kl_coefficient: float = Field(0.02, ge=0, description="weight of the KL to the frozen reference")
    benign_share: float = Field(0.3, ge=0, le=1, description="share of goals that are benign look-alikes to over-block")
    novelty_weight: float = Field(0.1, ge=0, description="bonus for distance to the archive and the group")
    archive_size: int = Field(4000, ge=1, description="successes kept for replay")
    gate: GateConfig = GateConfig()
    kv_cache_gib: int = Field(1, ge=1, description="the engines' key-value cache on a CPU")
    gpu_memory: float = Field(0.5, gt=0, le=1, description="share of an accelerator's memory an engine takes")
    max_probe_difference: float = Field(1e-3, gt=0, description="largest |logprob difference| a weight sync may leave")

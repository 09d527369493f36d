"""The loss of the attackers' update, its advantages and its batches. Knows nothing of RLlib's actors.

GRPO (arXiv 2402.03300) with the constant denominator of Dr. GRPO (2503.20783), DAPO's higher upper clip (2503.14476)
and truncated importance sampling between engine and learner; RLOO (2402.14740) is another advantage in the same loss,
flow matching one more (`balanced_advantages`).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from ray.rllib.policy.sample_batch import SampleBatch

from actors.config import ObjectiveConfig
from actors.module import ADVANTAGES, ENGINE_LOGPROBS, INPUT_IDS, SEGMENTS

_EQUAL = 1e-6  # a group whose rewards spread less than this teaches nothing


@dataclasses.dataclass(frozen=True)
class LossTerms:
    """The loss (scalar) and what it is made of: KL and ratio by token [batch, tokens], the importance weights' too."""

    loss: torch.Tensor
    kl: torch.Tensor
    ratio: torch.Tensor
    weight: torch.Tensor
    clipped: torch.Tensor

    def logged(self, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the means over the tokens of `mask` that the learner logs."""
        count = mask.sum().clamp(min=1)
        values = {"kl": self.kl, "ratio": self.ratio, "clipped_share": self.clipped, "importance_weight": self.weight}
        return {name: (value.detach() * mask).sum() / count for name, value in values.items()}


def policy_loss(
    logprobs: torch.Tensor,
    engine_logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    reference_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    lengths: torch.Tensor,
    *,
    completions: int,
    max_new_tokens: int,
    objective: ObjectiveConfig,
) -> LossTerms:
    """Return the loss of a microbatch, a part of an optimiser step of `completions` completions.

    Tokens are summed and divided by constants, so that neither padding, nor empty rows, nor over how many learners and
    microbatches a step is spread changes what a token weighs. The KL is the k3 estimator, as in GRPO.

    Args:
        logprobs: of the policy, with gradient; [batch, tokens] as the next five.
        engine_logprobs: of the policy that sampled, by the engine.
        old_logprobs: of the same by the learner; where they are the engine's, no importance weight is applied.
        reference_logprobs: of the frozen reference.
        advantages: of the completion a token is in.
        mask: true on completion tokens.
        lengths: of the completion a token is in, in tokens.
        completions: of a whole optimiser step of one learner, empty rows counted.
        max_new_tokens: the longest completion there can be.
        objective: clips, normalisation, KL and importance cap.
    """
    per_token = mask / (lengths.clamp(min=1) if objective.length_normalised else max_new_tokens)
    ratio = torch.exp(torch.where(mask, logprobs - old_logprobs, 0.0))
    weight = torch.exp(torch.where(mask, old_logprobs - engine_logprobs, 0.0))
    if objective.importance_cap is not None:
        weight = weight.clamp(max=objective.importance_cap)
    trusted = ratio.clamp(1 - objective.clip, 1 + objective.clip_high)
    surrogate = weight * torch.minimum(ratio * advantages, trusted * advantages)
    gap = torch.where(mask, reference_logprobs - logprobs, 0.0)
    kl = torch.exp(gap) - gap - 1
    penalty = objective.kl_coefficient * kl if objective.hold == "kl" else 0.0
    loss = ((penalty - surrogate) * per_token).sum() / completions
    # Where the clip does not lower the gain, the gradient is what it is without it.
    clipped = (trusted * advantages < ratio * advantages).to(ratio.dtype)
    return LossTerms(loss, kl, ratio, weight, clipped)


def group_advantages(rewards: np.ndarray, kind: str = "grpo") -> np.ndarray:
    """Return each reward's advantage over its group; [groups, size] in and out.

    "grpo" is (r - mean) / std (arXiv 2402.03300), "rloo" r minus the mean of the others (arXiv 2402.14740). A group
    whose rewards are all equal teaches nothing and gets zeros.
    """
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    spread = rewards.std(axis=1, keepdims=True)
    scale = (rewards.shape[1] - 1) / rewards.shape[1] if kind == "rloo" else np.maximum(spread, _EQUAL)
    return np.where(spread > _EQUAL, centred / scale, 0.0)


def balanced_advantages(
    advantages: torch.Tensor, log_ratios: torch.Tensor, segments: torch.Tensor, coefficient: float
) -> torch.Tensor:
    """Return advantages less `coefficient` times how far a completion's log-ratio is above the mean of the others.

    With RLOO's advantages the loss has the gradient of trajectory balance in its contrastive form (VarGrad, arXiv
    2010.10436; TBA, 2503.18929): of the variance in a group of log(policy / reference) - reward / coefficient. Where it
    is least the policy is the reference times exp(reward / coefficient): every mode at its share, not the best alone.

    Args:
        advantages: of the completion a token is in; [batch, tokens] as the next two.
        log_ratios: of policy to reference, by token; no gradient passes.
        segments: a group's completions, as in `Row`.
        coefficient: of the reference; the temperature of what is sampled in the end.
    """
    index = segments.clamp(min=0).long()
    completions = torch.zeros(len(index), int(index.max()) + 1, dtype=log_ratios.dtype, device=index.device)
    present = torch.zeros_like(completions).scatter_(1, index, 1.0)
    present[:, 0] = 0.0  # the prompt, and padding
    sums = completions.scatter_add(1, index, log_ratios.detach()) * present
    count = present.sum(1, keepdim=True)
    above = (count * sums - sums.sum(1, keepdim=True)) / (count - 1).clamp(min=1) * present
    return advantages - coefficient * above.gather(1, index)


def imitation_advantages(rewards: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return 1 for the best of each group that passed the gate, 0 for all else; [groups, size] in and out.

    With these the loss is that of fine-tuning on the policy's own gated best (RAFT, arXiv 2304.06767): the warm start.
    """
    best = np.where(kept, rewards, -np.inf).max(axis=1, keepdims=True)
    return (kept & (rewards >= best)).astype(np.float64)


@dataclasses.dataclass(frozen=True)
class Row:
    """A group as the learner reads it: the prompt once, then its completions; arrays are [tokens].

    Attributes:
        input_ids: token ids.
        segments: 0 on the prompt, k on the k-th completion.
        engine_logprobs: of completion tokens, by the engine that sampled them; 0 on the prompt.
        advantages: of the completion a token is in; 0 on the prompt.
    """

    input_ids: np.ndarray
    segments: np.ndarray
    engine_logprobs: np.ndarray
    advantages: np.ndarray

    @classmethod
    def of(
        cls,
        prompt_ids: Sequence[int],
        completions: Sequence[Sequence[int]],
        logprobs: Sequence[np.ndarray],
        advantages: np.ndarray,
    ) -> "Row":
        """Return the row of a prompt and what was sampled from it; `advantages` has one number for each completion."""
        lengths = [len(prompt_ids), *map(len, completions)]
        ids = [token for part in (prompt_ids, *completions) for token in part]
        return cls(
            input_ids=np.array(ids, dtype=np.int32),
            segments=np.repeat(np.arange(len(lengths), dtype=np.int16), lengths),
            engine_logprobs=np.concatenate([np.zeros(lengths[0]), *logprobs]).astype(np.float32),
            advantages=np.repeat([0.0, *advantages], lengths).astype(np.float32),
        )

    def __len__(self) -> int:
        return len(self.input_ids)


def train_batches(
    rows: Sequence[Row], *, learners: int, multiple: int, every: bool = False
) -> list[SampleBatch] | None:
    """Return one padded batch for each learner, or None if there is nothing to learn.

    Rows without an advantage are left out, unless `every` row has a gradient, as in trajectory balance. The rest is
    ordered by length, so that minibatches pad little, dealt out in turn, and filled up with empty rows to a multiple of
    `multiple` for every learner: they wait for each other.
    """
    kept = sorted((row for row in rows if every or row.advantages.any()), key=len)
    if not kept:
        return None
    count = -(-len(kept) // (learners * multiple)) * multiple
    return [_padded(kept[learner::learners], count, len(kept[-1])) for learner in range(learners)]


def _padded(rows: Sequence[Row], count: int, width: int) -> SampleBatch:
    shape = (count, width)
    batch: dict[str, np.ndarray] = {
        INPUT_IDS: np.zeros(shape, dtype=np.int64),
        SEGMENTS: np.full(shape, -1, dtype=np.int64),
        ENGINE_LOGPROBS: np.zeros(shape, dtype=np.float32),
        ADVANTAGES: np.zeros(shape, dtype=np.float32),
    }
    for place, row in enumerate(rows):
        batch[INPUT_IDS][place, : len(row)] = row.input_ids
        batch[SEGMENTS][place, : len(row)] = row.segments
        batch[ENGINE_LOGPROBS][place, : len(row)] = row.engine_logprobs
        batch[ADVANTAGES][place, : len(row)] = row.advantages
    return SampleBatch(batch)

"""The GRPO update: a clipped policy-gradient loss with a KL to the frozen reference."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.policy.sample_batch import SampleBatch

from actors.module import ADVANTAGES, ENGINE_LOGPROBS, INPUT_IDS, SEGMENTS, completion_starts


@dataclasses.dataclass(frozen=True)
class LossTerms:
    """The loss and what it is made of; all scalars."""

    loss: torch.Tensor
    policy_loss: torch.Tensor
    kl: torch.Tensor
    clipped_share: torch.Tensor


def grpo_loss(
    logprobs: torch.Tensor,
    engine_logprobs: torch.Tensor,
    reference_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    *,
    completions: torch.Tensor,
    clip: float,
    kl_coefficient: float,
    max_new_tokens: int,
) -> LossTerms:
    """Return the GRPO loss of a minibatch.

    Tokens are summed and divided by completions times `max_new_tokens`, a constant, so that neither padding nor a
    completion's length changes a token's weight (Dr. GRPO, arXiv 2503.20783). The KL is the k3 estimator, as in GRPO
    (arXiv 2402.03300).

    Args:
        logprobs, engine_logprobs, reference_logprobs: [batch, tokens].
        advantages: [batch, tokens], of the completion a token is in.
        mask: [batch, tokens], true on completion tokens.
        completions: how many there are; scalar.
        clip: half-width of the trusted range of the probability ratio.
        kl_coefficient: weight of the KL.
        max_new_tokens: the longest completion there can be.
    """
    scale = completions.clamp(min=1) * max_new_tokens
    ratio = torch.exp(logprobs - engine_logprobs)
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    policy_loss = -(surrogate * mask).sum() / scale
    gap = reference_logprobs - logprobs
    kl = ((torch.exp(gap) - gap - 1) * mask).sum() / mask.sum().clamp(min=1)
    kl_loss = ((torch.exp(gap) - gap - 1) * mask).sum() / scale
    clipped = (((ratio - 1).abs() > clip) & mask).sum() / mask.sum().clamp(min=1)
    return LossTerms(policy_loss + kl_coefficient * kl_loss, policy_loss.detach(), kl.detach(), clipped.detach())


def group_advantages(rewards: np.ndarray) -> np.ndarray:
    """Return each reward's advantage over its group, (r - mean) / std; [groups, size] in and out.

    A group whose rewards are all equal teaches nothing and gets zeros. Source: GRPO, arXiv 2402.03300.
    """
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    spread = rewards.std(axis=1, keepdims=True)
    return np.where(spread > 1e-6, centred / np.maximum(spread, 1e-6), 0.0)


@dataclasses.dataclass(frozen=True)
class Group:
    """A prompt and what was sampled from it: token ids, and of each completion the engine's logprobs and advantage."""

    prompt_ids: Sequence[int]
    completions: Sequence[Sequence[int]]
    logprobs: Sequence[np.ndarray]
    advantages: np.ndarray


def train_batch(groups: Sequence[Group], multiple: int) -> SampleBatch | None:
    """Return one padded batch, a row for each group, or None if there is nothing to learn.

    Groups without an advantage are left out. The rest is ordered by length, so that minibatches pad little, and filled
    up with empty rows to a multiple of `multiple` (minibatch times learners), or learners would wait for each other.
    """
    kept = sorted((group for group in groups if group.advantages.any()), key=_width)
    if not kept:
        return None
    shape = (len(kept) + (-len(kept) % multiple), _width(kept[-1]))
    batch: dict[str, np.ndarray] = {
        INPUT_IDS: np.zeros(shape, dtype=np.int64),
        SEGMENTS: np.full(shape, -1, dtype=np.int64),
        ENGINE_LOGPROBS: np.zeros(shape, dtype=np.float32),
        ADVANTAGES: np.zeros(shape, dtype=np.float32),
    }
    for row, group in enumerate(kept):
        end = len(group.prompt_ids)
        batch[INPUT_IDS][row, :end] = group.prompt_ids
        batch[SEGMENTS][row, :end] = 0
        for number, completion in enumerate(group.completions):
            start, end = end, end + len(completion)
            place = np.s_[row, start:end]
            batch[INPUT_IDS][place] = completion
            batch[SEGMENTS][place] = number + 1
            batch[ENGINE_LOGPROBS][place] = group.logprobs[number]
            batch[ADVANTAGES][place] = group.advantages[number]
    return SampleBatch(batch)


def _width(group: Group) -> int:
    return len(group.prompt_ids) + sum(len(completion) for completion in group.completions)


class GRPOLearner(TorchLearner):
    """RLlib's torch learner with the GRPO loss."""

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Register one fused AdamW over the trainable parameters."""
        parameters = [p for p in self._module[module_id].parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.0, fused=True)
        self.register_optimizer(
            module_id=module_id, optimizer=optimizer, params=parameters, lr_or_lr_schedule=config.lr
        )

    def _uncompiled_update(self, batch: dict[str, Any], **kwargs: Any) -> Any:
        # The batch is as wide as its longest row; a minibatch of short rows need not be. Empty rows have done their
        # part once minibatches are cut; one stays if there is nothing else: other learners wait for a gradient.
        for module_batch in batch.values():
            lengths = (module_batch[SEGMENTS] >= 0).sum(1)
            rows = lengths > 0 if lengths.any() else torch.arange(len(lengths), device=lengths.device) == 0
            for key, value in module_batch.items():
                if value.ndim == 2:
                    module_batch[key] = value[rows, : max(1, int(lengths.max()))]
        return super()._uncompiled_update(batch, **kwargs)

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Return the loss of a minibatch and log its terms."""
        mask = batch[SEGMENTS] > 0
        terms = grpo_loss(
            fwd_out["logprobs"],
            batch[ENGINE_LOGPROBS],
            fwd_out["reference_logprobs"],
            batch[ADVANTAGES],
            mask,
            completions=completion_starts(batch[SEGMENTS]).sum(),
            clip=config.clip_param,
            kl_coefficient=config.kl_coefficient,
            max_new_tokens=config.max_new_tokens,
        )
        entropy = fwd_out["entropy"].sum() / mask.sum().clamp(min=1)
        values = {
            "policy_loss": terms.policy_loss,
            "kl": terms.kl,
            "clipped_share": terms.clipped_share,
            "entropy": entropy,
        }
        for name, value in values.items():
            self.metrics.log_value((module_id, name), value.item(), reduce="mean")
        return terms.loss

    @torch.no_grad()
    def probe(self, token_ids: Sequence[Sequence[int]]) -> tuple[list[np.ndarray], float]:
        """Return the policy's log-probabilities of fixed token ids, and how far its weights are from the reference's.

        The first is one array [tokens - 1] for each sequence, at temperature 1; the second an L2 norm.
        """
        module = self.module[DEFAULT_MODULE_ID].unwrapped()
        rows = [torch.tensor([list(ids)], device=self._device) for ids in token_ids]
        logprobs = []
        for ids in rows:
            segments = torch.ones_like(ids)
            segments[:, 0] = 0
            result = module.logprobs(ids, segments, temperature=1.0)
            logprobs.append(result["logprobs"][0, 1:].double().cpu().numpy())
        return logprobs, module.distance_from_reference()

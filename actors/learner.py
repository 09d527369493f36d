"""The GRPO update: a clipped policy-gradient loss with a KL to the frozen reference."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.policy.sample_batch import SampleBatch

from actors.module import ADVANTAGES, ATTENTION_MASK, COMPLETION_MASK, ENGINE_LOGPROBS, INPUT_IDS


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
    clip: float,
    kl_coefficient: float,
    max_new_tokens: int,
) -> LossTerms:
    """Return the GRPO loss of a minibatch.

    Tokens are summed and divided by rows times `max_new_tokens`, a constant, so that neither padding nor a completion's
    length changes a token's weight (Dr. GRPO, arXiv 2503.20783); rows whose mask is empty are padding and do not count.
    The KL is the k3 estimator, as in GRPO (arXiv 2402.03300).

    Args:
        logprobs, engine_logprobs, reference_logprobs: [batch, tokens].
        advantages: [batch].
        mask: [batch, tokens], true on completion tokens.
        clip: half-width of the trusted range of the probability ratio.
        kl_coefficient: weight of the KL.
        max_new_tokens: the longest completion there can be.
    """
    scale = mask.any(dim=1).sum().clamp(min=1) * max_new_tokens
    ratio = torch.exp(logprobs - engine_logprobs)
    surrogate = torch.minimum(ratio * advantages[:, None], ratio.clamp(1 - clip, 1 + clip) * advantages[:, None])
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


def train_batch(
    samples: Sequence[tuple[Sequence[int], Sequence[int], np.ndarray, float]], multiple: int
) -> SampleBatch | None:
    """Return one padded batch of (prompt ids, completion ids, engine logprobs, advantage), or None without samples.

    Rows with advantage zero are left out. The rest is ordered by length, so that minibatches pad little, and filled up
    with empty rows to a multiple of `multiple` (minibatch times learners), or the learners would wait for each other.
    """
    kept = sorted((s for s in samples if s[3] != 0.0 and len(s[1]) > 0), key=lambda s: len(s[0]) + len(s[1]))
    if not kept:
        return None
    rows = len(kept) + (-len(kept) % multiple)
    width = max(len(prompt) + len(completion) for prompt, completion, _, _ in kept)
    batch = {
        INPUT_IDS: np.zeros((rows, width), dtype=np.int64),
        ATTENTION_MASK: np.zeros((rows, width), dtype=np.int64),
        COMPLETION_MASK: np.zeros((rows, width), dtype=bool),
        ENGINE_LOGPROBS: np.zeros((rows, width), dtype=np.float32),
        ADVANTAGES: np.zeros(rows, dtype=np.float32),
    }
    batch[ATTENTION_MASK][:, 0] = 1  # an empty row still attends to something
    for row, (prompt, completion, logprobs, advantage) in enumerate(kept):
        start, end = len(prompt), len(prompt) + len(completion)
        batch[INPUT_IDS][row, :end] = [*prompt, *completion]
        batch[ATTENTION_MASK][row, :end] = 1
        batch[COMPLETION_MASK][row, start:end] = True
        batch[ENGINE_LOGPROBS][row, start:end] = logprobs
        batch[ADVANTAGES][row] = advantage
    return SampleBatch(batch)


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
        # The batch is as wide as its longest row; a minibatch of short rows need not be.
        for module_batch in batch.values():
            width = int(module_batch[ATTENTION_MASK].sum(1).max())
            for key, value in module_batch.items():
                if value.ndim == 2:
                    module_batch[key] = value[:, :width]
        return super()._uncompiled_update(batch, **kwargs)

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Return the loss of a minibatch and log its terms."""
        mask = batch[COMPLETION_MASK].bool()
        terms = grpo_loss(
            fwd_out["logprobs"],
            batch[ENGINE_LOGPROBS],
            fwd_out["reference_logprobs"],
            batch[ADVANTAGES],
            mask,
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
            wanted = torch.ones_like(ids, dtype=torch.bool)
            wanted[:, 0] = False
            result = module.logprobs(ids, torch.ones_like(ids), wanted, temperature=1.0)
            logprobs.append(result["logprobs"][0, 1:].double().cpu().numpy())
        return logprobs, module.distance_from_reference()

"""The update: RLlib's torch learner with the loss of actors/loss.py, gradient accumulation and a warm-up."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner

from actors.loss import balanced_advantages, policy_loss
from actors.module import ADVANTAGES, ENGINE_LOGPROBS, INPUT_IDS, OLD_LOGPROBS, SEGMENTS, completion_lengths


class GRPOLearner(TorchLearner):
    """RLlib's torch learner with the GRPO loss."""

    def build(self) -> None:
        """Build module and optimizer."""
        super().build()
        self._accumulated: dict[Any, torch.Tensor] = {}
        self._minibatches = 0

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Register one fused AdamW over the trainable parameters; its rate rises over the warm-up's samples."""
        parameters = [p for p in self._module[module_id].parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.0, fused=True)
        samples = config.warmup_samples
        schedule = [[0, config.lr / 10], [samples, config.lr]] if samples else config.lr
        self.register_optimizer(module_id=module_id, optimizer=optimizer, params=parameters, lr_or_lr_schedule=schedule)

    def _make_batch_if_necessary(self, training_data: Any) -> Any:
        """Return the batch as tensors, with the learner's own log-probabilities where they correct the engine's."""
        batch = super()._make_batch_if_necessary(training_data)
        if self.config.objective.importance_cap is not None:
            rows = batch[DEFAULT_MODULE_ID]
            parts = [
                self._own_logprobs(rows[INPUT_IDS][i : i + self.config.rows], rows[SEGMENTS][i : i + self.config.rows])
                for i in range(0, len(rows[INPUT_IDS]), self.config.rows)
            ]
            rows[OLD_LOGPROBS] = torch.cat(parts)
        return batch

    @torch.no_grad()
    def _own_logprobs(self, input_ids: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
        module = self.module[DEFAULT_MODULE_ID].unwrapped()
        return module.logprobs(input_ids, segments, module.temperature)["logprobs"]

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

    def apply_gradients(self, gradients_dict: dict[Any, torch.Tensor]) -> None:
        """Step the optimizer with the sum of the gradients of `accumulate` minibatches."""
        self._minibatches += 1
        wanted = self.config.accumulate
        if wanted > 1:
            for name, gradient in gradients_dict.items():
                total = self._accumulated.get(name)
                self._accumulated[name] = gradient.clone() if total is None else total.add_(gradient)
            if self._minibatches % wanted:
                return
            gradients_dict, self._accumulated = self._accumulated, {}
        super().apply_gradients(super().postprocess_gradients(gradients_dict))

    def postprocess_gradients(self, gradients_dict: dict[Any, torch.Tensor]) -> dict[Any, torch.Tensor]:
        """Leave a minibatch's gradients as they are: it is their sum that is clipped."""
        return gradients_dict

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Return the loss of a minibatch and log its terms."""
        mask = batch[SEGMENTS] > 0
        engine, advantages = batch[ENGINE_LOGPROBS], batch[ADVANTAGES]
        if config.objective.hold == "balance":
            log_ratios = fwd_out["logprobs"] - fwd_out["reference_logprobs"]
            advantages = balanced_advantages(advantages, log_ratios, batch[SEGMENTS], config.objective.kl_coefficient)
        terms = policy_loss(
            fwd_out["logprobs"],
            engine,
            batch.get(OLD_LOGPROBS, engine),
            fwd_out["reference_logprobs"],
            advantages,
            mask,
            completion_lengths(batch[SEGMENTS]),
            completions=config.rows * config.accumulate * config.group_size,
            max_new_tokens=config.max_new_tokens,
            objective=config.objective,
        )
        if mask.any():  # rows that fill up a batch have nothing to log
            for name, value in (terms.logged(mask) | {"entropy": fwd_out["entropy"].sum() / mask.sum()}).items():
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

"""The update: RLlib's torch learner with the loss of actors/loss.py, a warm-up, and minibatches cut to the memory."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ray._private.utils import estimate_available_memory
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner

from actors.loss import balanced_advantages, policy_loss
from actors.module import ADVANTAGES, ENGINE_LOGPROBS, INPUT_IDS, OLD_LOGPROBS, SEGMENTS, completion_lengths

#: Of the free memory, what autograd may keep: the backward pass needs as much again, and engines live here, too.
_SHARE_OF_MEMORY = 0.25


class GRPOLearner(TorchLearner):
    """RLlib's torch learner with the GRPO loss."""

    def build(self) -> None:
        """Build module and optimizer."""
        super().build()
        self._token_bytes: float | None = None
        self._tokens_at_once = 0.0

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Register one fused AdamW over the trainable parameters; its rate rises over the warm-up's samples."""
        parameters = [p for p in self._module[module_id].parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.0, fused=True)
        samples = config.warmup_samples
        schedule = [[0, config.lr / 10], [samples, config.lr]] if samples else config.lr
        self.register_optimizer(module_id=module_id, optimizer=optimizer, params=parameters, lr_or_lr_schedule=schedule)

    def _make_batch_if_necessary(self, training_data: Any) -> Any:
        """Return the batch as tensors, with the learner's own log-probabilities where they correct the engine's.

        How much is computed at once is settled here, for all of its minibatches.
        """
        batch = super()._make_batch_if_necessary(training_data)
        self._look_at_memory(batch[DEFAULT_MODULE_ID])
        if self.config.objective.importance_cap is not None:
            rows = batch[DEFAULT_MODULE_ID]
            parts = [self._own_logprobs(part) for part in self._microbatches(rows)]
            rows[OLD_LOGPROBS] = torch.cat([F.pad(p, (0, rows[SEGMENTS].shape[1] - p.shape[1])) for p in parts])
        return batch

    @torch.no_grad()
    def _own_logprobs(self, rows: Mapping[str, torch.Tensor]) -> torch.Tensor:
        module = self.module[DEFAULT_MODULE_ID].unwrapped()
        return module.logprobs(rows[INPUT_IDS], rows[SEGMENTS], module.temperature)["logprobs"]

    def _uncompiled_update(self, batch: dict[str, Any], **_: Any) -> Any:
        """Take an optimiser step; what does not fit the memory at once is computed in parts, whose gradients add up."""
        for optimizer in self._optimizer_parameters:
            optimizer.zero_grad(set_to_none=True)
        rows = batch[DEFAULT_MODULE_ID]
        # Empty rows have done their part once minibatches are cut. One stays if there is nothing else: other learners
        # wait for a gradient.
        full = (rows[SEGMENTS] >= 0).any(1)
        full[0] |= ~full.any()
        parts = list(self._microbatches({key: value[full] for key, value in rows.items() if value.ndim == 2}))
        loss: Any = 0.0
        for number, part in enumerate(parts, 1):
            with contextlib.nullcontext() if number == len(parts) else self._alone():
                of_part = {DEFAULT_MODULE_ID: part}
                result = self.module.forward_train(of_part)
                part_loss = self.compute_losses(fwd_out=result, batch=of_part)[DEFAULT_MODULE_ID]
                part_loss.backward()
            loss = loss + part_loss.detach()
        gradients = {name: parameter.grad for name, parameter in self._params.items()}
        self.apply_gradients(self.postprocess_gradients(gradients))
        return result, {DEFAULT_MODULE_ID: loss}, {}

    def _alone(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which gradients stay with this learner."""
        module = self.module[DEFAULT_MODULE_ID]
        return module.no_sync() if self.config.num_learners > 1 else contextlib.nullcontext()

    def _microbatches(self, rows: Mapping[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
        """Yield parts of a batch that the memory holds, each as wide as its longest row."""
        lengths = (rows[SEGMENTS] >= 0).sum(1).tolist()
        start = 0
        while start < len(lengths):
            end = start + 1
            while end < len(lengths) and self._fits(end + 1 - start, max(lengths[start : end + 1])):
                end += 1
            width = max(1, *lengths[start:end])
            yield {key: value[start:end, :width] for key, value in rows.items()}
            start = end

    def _fits(self, rows: int, width: int) -> bool:
        return rows <= self.config.microbatch if self.config.microbatch else rows * width <= self._tokens_at_once

    def _look_at_memory(self, rows: Mapping[str, torch.Tensor]) -> None:
        """Set how many tokens, padding included, are computed at once, by what one long row has autograd keep."""
        lengths = (rows[SEGMENTS] >= 0).sum(1)
        width = int(lengths.max())
        if self.config.microbatch or not width:
            return
        if self._token_bytes is None:
            longest = int(lengths.argmax())
            row = {key: rows[key][longest : longest + 1, :width] for key in (INPUT_IDS, SEGMENTS)}
            module = self.module[DEFAULT_MODULE_ID].unwrapped()
            self._token_bytes = bytes_kept(lambda: module.forward_train(row), module) / width
        free = free_memory(self._device)
        if not any(optimizer.state for optimizer in self._optimizer_parameters):  # gradients and moments are to come
            free -= 3 * sum(p.untyped_storage().nbytes() for p in self._params.values())
        if self._device.type == "cpu":  # the learners may all be on this machine
            free //= max(1, self.config.num_learners)
        self._tokens_at_once = _SHARE_OF_MEMORY * free / self._token_bytes

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Return the loss of a microbatch and log its terms, each microbatch counting the same in their means."""
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
            completions=config.rows * config.group_size,
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


def bytes_kept(forward: Callable[[], Any], module: torch.nn.Module) -> int:
    """Return the bytes that autograd keeps of a forward pass for the backward pass, the module's own weights aside."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = forward()  # while it lives, no two of what is kept have one address
    del result
    return sum(size for address, size in kept.items() if address not in weights)


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device: an accelerator, or the CPU within its container's limit."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    return int(estimate_available_memory())

"""What each worker of Ray Train does: the steps of a training, from the base or from where it was stopped.

The steps are a function of the data, the settings and the seed alone. Any number of workers takes the same ones, each
computing a part of every batch, and each step draws its dropout from a seed of its own: a training that goes on at a
step ends as one that was never stopped. With `minutes` how many steps there are is the machine's to say, too.
"""

import bisect
import contextlib
import dataclasses
import itertools
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray.train
import torch
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import prepare_model
from sklearn.metrics import average_precision_score
from torch.utils.tensorboard import SummaryWriter
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from guardrail.backends import TorchBackend
from guardrail.bases import load_base
from guardrail.dropout import ByteDropout
from guardrail.examples import Examples, epoch_batches, examples_of, tokenised
from guardrail.guard import Guard
from guardrail.guard_card import GuardCard
from guardrail.objective import Totals, guard_loss, moved, start_at_priors, watched, worst_step
from guardrail.optimisation import (
    choose_trainable,
    computes_bfloat16,
    interpolated,
    parameter_groups,
    plain_weights,
    train_mode,
    weight_average,
)
from guardrail.reading import reading_of
from guardrail.records import read_records
from guardrail.taxonomy import UNSAFE
from guardrail.training_config import TrainingConfig
from guardrail.training_progress import write_progress

PROGRESS_FILE = "progress.json"
DATASET = "train"  # what `guardrail.examples.tokenised` made of the records
_STATE_FILE = "state.pt"
_SAMPLE = 32  # texts whose mean state is that of all
_TOLD_EVERY = 10  # steps
_LARGEST_GRADIENT = 1.0  # L2 norm
_WARM_UP = 0.1  # of the training
_KEPT_AFTER = 300.0  # seconds of steps, where time is limited: what a death costs of it is not given back


@dataclasses.dataclass
class Progress:
    """How far a training is.

    Attributes:
        step: of the whole training, that comes next.
        seconds: that the steps took, by the first worker's clock.
        loss: sum over the steps of this epoch and over all workers.
        metrics: of the last epoch that ended.
        best_auprc: on the validation split, after any epoch.
        best_weights: that had it.
        best_metrics: of that epoch.
        stale: epochs since.
    """

    step: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    best_auprc: float = -1.0
    best_weights: dict[str, torch.Tensor] | None = None
    best_metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    stale: int = 0


def train_loop(settings: dict[str, Any]) -> None:
    """Train on one worker (the function Ray Train runs); `settings` are those `fine_tune` builds.

    A training whose loss or gradients are no longer finite ends at the next step that is kept, without a checkpoint.
    """
    config = TrainingConfig.model_validate(settings["config"])
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    # Ray gives an actor one thread per CPU it reserves; the guard trains alone on its machine.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // max(1, context.get_local_world_size())))
    torch.manual_seed(settings["seed"])

    bare, tokenizer = load_base(settings["start"], config.layers)
    data = _training_data(settings, config, tokenizer)
    if settings["new_head"]:
        some = np.random.default_rng(settings["seed"]).permutation(len(data.input_ids))[:_SAMPLE]
        inputs = tokenizer.pad({"input_ids": [data.input_ids[i] for i in some]}, return_tensors="pt")
        start_at_priors(bare.eval(), data.targets, data.weights, inputs.to(bare.device))
    choose_trainable(bare, config)
    # Buffers are constants, and writing them anew would break the first of two passes of adversarial training.
    model = prepare_model(bare, parallel_strategy_kwargs={"broadcast_buffers": False})
    optimizer = torch.optim.AdamW(
        parameter_groups(bare, settings["learning_rate"], config.layer_decay),
        weight_decay=config.weight_decay,
        fused=True,
    )
    epochs = [
        epoch_batches(data.lengths, config.tokens_per_batch, settings["seed"] + epoch)
        for epoch in range(settings["epochs"])
    ]
    steps = list(itertools.chain.from_iterable(epochs))
    epoch_ends = list(itertools.accumulate(len(batches) for batches in epochs))
    average = weight_average(bare, config.average) if config.average else None
    kept: PreTrainedModel = average.module if average else bare

    parts = {"model": bare, "optimizer": optimizer} | ({"average": average} if average else {})
    # Of ours, not of Ray Train: without workers that stores none.
    state = Path(settings["work"]) / _STATE_FILE
    progress = _restored(state, parts)
    loss = torch.tensor(progress.loss / world, device=bare.device)
    shown = settings["board"] and rank == 0
    board = SummaryWriter(settings["board"], purge_step=progress.step + 1) if shown else None
    train_mode(bare)
    diverged = False
    began, kept_at = time.monotonic() - progress.seconds, progress.seconds
    share = _share_done(progress, len(steps), config.minutes)
    while share < 1 and not (config.patience and progress.stale >= config.patience):
        for group in optimizer.param_groups:
            # That of the step's middle: at the beginning of its first step it is nothing, and there may be just one.
            group["lr"] = group["peak"] * learning_rate(share + 0.5 / len(steps))
        _reseed(settings["seed"], progress.step, rank)
        loss += step_gradients(model, data, steps[progress.step], tokenizer, config, rank, world)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), _LARGEST_GRADIENT)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if average:
            average.update_parameters(bare)
        progress.step += 1
        if config.minutes:
            progress.seconds = _of_first(time.monotonic() - began, world, loss.device)
        share = _share_done(progress, len(steps), config.minutes)
        epoch = bisect.bisect_left(epoch_ends, progress.step)
        of_epoch = progress.step - (epoch_ends[epoch - 1] if epoch else 0)
        if rank == 0 and progress.step % _TOLD_EVERY == 0:
            mean = float(loss) * world / of_epoch
            write_progress(Path(settings["work"]) / PROGRESS_FILE, progress.step, round(progress.step / share), mean)
            if board:
                board.add_scalar("guard/loss", mean, progress.step)  # of the steps of this epoch
                board.add_scalar("guard/learning_rate", optimizer.param_groups[0]["lr"], progress.step)
                board.flush()

        ended = share >= 1 or progress.step in epoch_ends
        if not (ended or progress.step % config.checkpoint_every == 0 or progress.seconds - kept_at >= _KEPT_AFTER):
            continue
        kept_at = progress.seconds
        progress.loss = _summed(loss, world)
        # All workers know both. The gradients tell of the weights, which the loss before the step does not.
        diverged = not math.isfinite(progress.loss + float(norm))
        if diverged:
            break
        if ended:
            done = steps[: progress.step]
            progress.metrics = {
                "epochs": epoch + of_epoch / len(epochs[epoch]),
                "out_of_time": progress.step < len(steps) and share >= 1,
                "loss": progress.loss / of_epoch,
                "truncated": data.truncated,
                "tokens": sum(data.lengths[i] for batch in done for i in batch),
            }
            if config.patience:
                # The first worker's word, or rounding could have one stop while the others wait for it.
                auprc = broadcast_from_rank_zero(
                    _validation_auprc(kept, tokenizer, settings["validation"], config.window) if rank == 0 else None
                )
                train_mode(bare)
                _compare(progress, auprc, kept)
                if board:
                    board.add_scalar("guard/validation_auprc", auprc, progress.step)
            progress.loss = 0.0
            loss.zero_()
        if rank == 0:
            _save(state, progress, parts)
        if ended:
            ray.train.report(progress.metrics)

    if board:
        board.close()
    if diverged:
        return  # without a guard: of an error Ray would try again what ends the same
    if rank != 0:
        ray.train.report(progress.metrics)
        return
    metrics = progress.metrics
    if progress.best_weights:
        kept.load_state_dict(progress.best_weights)
        metrics = progress.best_metrics
    # Beside the storage, not in a temporary folder: without workers Ray Train hands back this very folder.
    folder = Path(settings["work"]) / "model"
    weights = plain_weights(kept)
    if config.start_share:
        torch.manual_seed(settings["seed"])  # for what the base lacks
        start, _ = load_base(settings["start"], config.layers)
        weights = interpolated(weights, start, config.start_share, settings["new_head"])
    bare.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
    ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(str(folder)))


def _training_data(settings: dict[str, Any], config: TrainingConfig, tokenizer: PreTrainedTokenizerBase) -> Examples:
    """Return all that is trained on: a batch's rows are dealt to the workers, so each has all of them."""
    if not config.workers:  # in the calling process, without a cluster
        return examples_of(tokenised(read_records(Path(settings["data"])), tokenizer, config, settings["seed"]), config)
    shard = ray.train.get_dataset_shard(DATASET)
    return examples_of(pa.concat_tables(shard.iter_batches(batch_size=None, batch_format="pyarrow")), config)


def step_gradients(
    model: torch.nn.Module,
    data: Examples,
    batch: list[int],
    tokenizer: PreTrainedTokenizerBase,
    config: TrainingConfig,
    rank: int = 0,
    world: int = 1,
) -> torch.Tensor:
    """Add the gradients of one step's batch to those of the parameters, and return this worker's part of the loss.

    The rows are dealt to the workers, and those of a worker to `config.accumulate` passes. Each loss is a part of the
    mean over the whole batch; times the number of workers, DDP's mean over these is the gradient one of them alone has.

    Args:
        model: the classifier, in DDP if there are several workers.
        data: what it is trained on.
        batch: rows of it.
        tokenizer: pads them.
        config: how to train.
        rank: of this worker.
        world: number of workers.
    """
    bare: PreTrainedModel = getattr(model, "module", model)
    embedding = bare.get_input_embeddings()
    device = bare.device
    totals = Totals.of(data.weights[batch])
    dealt = (batch[rank + part * world :: world * config.accumulate] for part in range(config.accumulate))
    # A worker without a row still takes part in the exchange, with a row that does not count.
    shares = [share for share in dealt if share] or [batch[:1]]
    scale = world if batch[rank:] else 0
    low_precision = config.mixed_precision and computes_bfloat16(device)

    def part_of_loss(inputs: dict[str, torch.Tensor], share: list[int]) -> torch.Tensor:
        targets, weights = (torch.from_numpy(each[share]).to(device) for each in (data.targets, data.weights))
        dropout = ByteDropout() if device.type == "cpu" else contextlib.nullcontext()
        with torch.autocast(device.type, torch.bfloat16, enabled=low_precision), dropout:
            logits = model(**inputs).logits
        return scale * guard_loss(logits, targets, weights, totals, config.category_weight)

    def exchanged(last: bool) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if last or world == 1 else model.no_sync()

    total = torch.zeros((), device=device)
    for share in shares:
        inputs = tokenizer.pad({"input_ids": [data.input_ids[i] for i in share]}, return_tensors="pt").to(device)
        last = share is shares[-1]
        watch: contextlib.AbstractContextManager[list[torch.Tensor]] = (
            watched(embedding) if config.adversarial else contextlib.nullcontext([])
        )
        with watch as outputs, exchanged(last and not config.adversarial):
            loss = part_of_loss(inputs, share)
            loss.backward()
        total += loss.detach() / world
        for output in outputs:
            step = worst_step(output.detach(), output.grad, inputs["attention_mask"], config.adversarial)
            with moved(embedding, step), exchanged(last):
                part_of_loss(inputs, share).backward()
    return total


def learning_rate(share: float) -> float:
    """Return the learning rate over its peak when `share` of the training is done: it rises, then falls, in lines."""
    return min(share / _WARM_UP, max(0.0, 1 - share) / (1 - _WARM_UP))


def _share_done(progress: Progress, steps: int, minutes: float) -> float:
    """Return how much of a training is done, by its steps or, if that is more, by its time; from 1 on it has ended."""
    return max(progress.step / steps, progress.seconds / (60 * minutes) if minutes else 0.0)


def _of_first(seconds: float, world: int, device: torch.device) -> float:
    """Return the first worker's word: by clocks of their own, some would stop while others wait for them."""
    if world == 1:
        return seconds
    told = torch.tensor(seconds, dtype=torch.float64, device=device)
    torch.distributed.broadcast(told, src=0)
    return float(told)


def _reseed(seed: int, step: int, rank: int) -> None:
    torch.manual_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0]))


def _summed(loss: torch.Tensor, world: int) -> float:
    total = loss.clone()
    if world > 1:
        torch.distributed.all_reduce(total)
    return float(total)


def _validation_auprc(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    validation: list[tuple[str, str | None, bool]],
    window: int,
) -> float:
    """Return the area under the precision-recall curve of (text, response, unsafe), read as a guard reads them."""
    card = GuardCard(version="", digest="", temperature=1.0, thresholds={UNSAFE: 0.5}, window=window)
    logits = Guard(TorchBackend(model), tokenizer, card).logits([reading_of(t, r) for t, r, _ in validation])
    return float(average_precision_score([unsafe for *_, unsafe in validation], logits[:, 0]))


def _compare(progress: Progress, auprc: float, model: PreTrainedModel) -> None:
    """Note whether an epoch's weights are the best so far."""
    progress.metrics["validation_auprc"] = auprc
    progress.stale += 1
    if auprc > progress.best_auprc:
        progress.best_auprc, progress.stale = auprc, 0
        progress.best_weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        progress.best_metrics = progress.metrics


def _save(path: Path, progress: Progress, parts: dict[str, Any]) -> None:
    """Write the state of a training, whole or not at all, over the one before."""
    partial = path.with_name(f".{path.name}")
    torch.save({"progress": vars(progress), **{name: part.state_dict() for name, part in parts.items()}}, partial)
    os.replace(partial, path)


def _restored(path: Path, parts: dict[str, Any]) -> Progress:
    """Load a state that `_save` wrote into the parts and return how far it is; a new one where there is none."""
    if not path.is_file():
        return Progress()
    saved = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return Progress(**saved["progress"])

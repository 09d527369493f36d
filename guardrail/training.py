"""Fine-tuning the guard: a DDP loop on Ray Train, then calibration, then a guard directory.

The batches of an epoch are a function of the data and the seed alone, so any number of workers sees the same ones and a
restarted worker goes on at the epoch it was in with the result it would have had.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray.train
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model
from transformers import AutoConfig, PreTrainedTokenizerBase, get_linear_schedule_with_warmup

from guardrail.calibration import choose_threshold, fit_temperature
from guardrail.guard import GUARD_FILE, LABELS, UNSAFE, Guard, GuardCard, load_base, read_as, token_batches, write_card
from guardrail.metrics import binary_metrics
from guardrail.models import resolve
from guardrail.records import Record, read_records
from guardrail.seeds import generation_seeds
from guardrail.taxonomy import CATEGORY_INDEX
from guardrail.text import canonical, digest, joined
from guardrail.transforms import TRANSFORMS, transformed

#: These number a text's positions from after the padding token's id on.
_POSITIONS_AFTER_PADDING = frozenset(
    {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "data2vec-text"}
)


class TrainingConfig(BaseModel):
    """How a guard is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str = Field("bundled:all-minilm-l6-v2", description="transformers base: bundled name, directory or hub id")
    window: int = Field(256, ge=16, description="tokens the guard reads at once")
    epochs: int = Field(4, ge=1, description="passes over the data when training from the base")
    retrain_from: Literal["base", "round0"] = Field(
        "round0",
        description="what a round trains: the base anew, or the round-0 guard further, so that no passes add up",
    )
    retrain_epochs: int = Field(2, ge=1, description="passes when the round-0 guard is trained further")
    learning_rate: float = Field(2e-4, gt=0, description="peak of a linear schedule with warm-up")
    retrain_learning_rate: float = Field(
        1e-4, gt=0, description="the same when the round-0 guard is trained further: what it knows should outlive that"
    )
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decoupled weight decay")
    tokens_per_batch: int = Field(1024, ge=64, description="tokens of one worker's batch, padding included")
    category_weight: float = Field(2.0, ge=0, description="weight of the category loss beside the unsafe loss")
    freeze_embeddings: bool = Field(True, description="leave the token embeddings alone: their dense update costs most")
    max_fpr: float = Field(0.05, gt=0, lt=1, description="most of the benign validation records the threshold may flag")
    augment: float = Field(
        0.0, ge=0, le=1, description="share of the records that are trained on a second time, written by a transform"
    )
    workers: int = Field(1, ge=0, description="DDP workers; 0 trains in the calling process")
    max_failures: int = Field(3, ge=0, description="worker deaths survived before the training gives up")


@dataclasses.dataclass(frozen=True)
class Examples:
    """Tokenised records: `input_ids` ragged, `targets` float32 [n, labels], `known` float32 [n, labels] (1: counts)."""

    input_ids: list[list[int]]
    targets: np.ndarray
    known: np.ndarray
    truncated: int


def encode(records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, window: int) -> Examples:
    """Tokenise records for training; unknown categories of unsafe records are masked in `known`."""
    texts = [joined(r["text"], r["response"]) for r in records]
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    input_ids = tokenizer(texts, truncation=True, max_length=window)["input_ids"]
    targets = np.zeros((len(records), len(LABELS)), dtype=np.float32)
    known = np.ones_like(targets)
    for row, record in enumerate(records):
        targets[row, 0] = record["unsafe"]
        if record["unsafe"] and record["categories"] is None:
            known[row, 1:] = 0.0
        for key in record["categories"] or ():
            targets[row, 1 + CATEGORY_INDEX[key]] = 1.0
    return Examples(input_ids, targets, known, truncated=sum(length > window for length in lengths))


def augmented(records: Sequence[Record], share: float, seed: int) -> list[Record]:
    """Return the records, and behind them a share of them as a transform drawn for each of them writes it.

    What a guard can decode it reads in plain letters as well (`guardrail.guard.read_as`). As it is written it shall
    then say nothing, so of these only benign records are written: a disguise alone is no reason to flag a text.
    """
    random, names, written = np.random.default_rng(seed), list(TRANSFORMS), list[Record]()
    for record in generation_seeds(records):
        if random.random() >= share:
            continue
        other = transformed(record, names[int(random.integers(len(names)))], seed)
        decoded = read_as(other["text"])[-1] == canonical(record["text"])
        if other["id"] != record["id"] and not (decoded and record["unsafe"]):
            written.append(other)
    return [*records, *written]


def guard_loss(
    logits: torch.Tensor, targets: torch.Tensor, known: torch.Tensor, category_weight: float
) -> torch.Tensor:
    """Return the mean binary cross-entropy of "unsafe" plus `category_weight` times that of the known categories.

    All arguments but the last are [batch, labels]; the categories' share is a mean over the known entries only.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    mask = known[:, 1:]
    categories = (entropy[:, 1:] * mask).sum() / mask.sum().clamp(min=1.0)
    return entropy[:, 0].mean() + category_weight * categories


def epoch_batches(lengths: Sequence[int], budget: int, seed: int, world_size: int) -> list[list[int]]:
    """Return an epoch's batches of indices: shuffled, of similar length within a batch, a multiple of `world_size`.

    Every index appears; the last batches are repeated where the workers would otherwise get unequal numbers.
    """
    generator = np.random.default_rng(seed)
    # Sorting by length plus a random offset keeps padding low while the batches differ from epoch to epoch.
    jitter = np.asarray(lengths) * (1 + 0.2 * generator.random(len(lengths)))
    batches = token_batches(np.argsort(jitter, kind="stable").tolist(), lengths, budget)
    batches = [batches[index] for index in generator.permutation(len(batches))]
    missing = -len(batches) % world_size
    return batches + [batches[index % len(batches)] for index in range(missing)]


def train_loop(settings: dict[str, Any]) -> None:
    """Train on one worker (the function Ray Train runs); `settings` are those `fine_tune` builds."""
    config = TrainingConfig.model_validate(settings["config"])
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    # Ray gives an actor one thread per CPU it reserves; the guard trains alone on its machine.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // max(1, context.get_local_world_size())))
    torch.manual_seed(settings["seed"])

    checkpoint = ray.train.get_checkpoint()
    start = checkpoint.to_directory() if checkpoint else settings["start"]
    model, tokenizer = load_base(start)
    records = augmented(read_records(Path(settings["data"])), config.augment, settings["seed"])
    data = encode(records, tokenizer, config.window)
    if config.freeze_embeddings:
        model.get_input_embeddings().weight.requires_grad_(False)
    model = prepare_model(model)
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=settings["learning_rate"],
        weight_decay=config.weight_decay,
        fused=True,
    )
    lengths = [len(ids) for ids in data.input_ids]
    epochs: int = settings["epochs"]
    plan = [epoch_batches(lengths, config.tokens_per_batch, settings["seed"] + e, world) for e in range(epochs)]
    steps = sum(len(batches) // world for batches in plan)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    first_epoch = 0
    if checkpoint:
        state = torch.load(Path(start) / "training.pt", weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first_epoch = state["epoch"]

    for epoch in range(first_epoch, epochs):
        torch.manual_seed(settings["seed"] + 1000 * epoch + rank)  # dropout
        model.train()
        total = 0.0
        batches = plan[epoch][rank::world]
        for batch in batches:
            padded = tokenizer.pad({"input_ids": [data.input_ids[i] for i in batch]}, return_tensors="pt").to(device)
            targets = torch.from_numpy(data.targets[batch]).to(device)
            known = torch.from_numpy(data.known[batch]).to(device)
            loss = guard_loss(model(**padded).logits, targets, known, config.category_weight)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        metrics = {"epoch": epoch + 1, "loss": total / len(batches), "truncated": data.truncated}
        metrics["tokens"] = sum(lengths[i] for batch in plan[epoch] for i in batch)
        if rank != 0:
            ray.train.report(metrics)
            continue
        # Beside the storage, not in a temporary folder: without workers Ray Train hands back this very folder.
        folder = Path(settings["work"]) / "epochs" / str(epoch + 1)
        shutil.rmtree(folder.parent, ignore_errors=True)
        getattr(model, "module", model).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        state = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(), "epoch": epoch + 1}
        torch.save(state, folder / "training.pt")
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(str(folder)))


class _Trainer(TorchTrainer):
    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave Ctrl-C to the caller: Ray's handler ends the process as if all had gone well, and stays for good."""


def fine_tune(
    config: TrainingConfig,
    *,
    data: Path,
    validation: Sequence[Record],
    output: Path,
    version: str,
    seed: int,
    start: Path | None = None,
    cpus_per_worker: float = 1.0,
    gpus_per_worker: float = 0.0,
) -> GuardCard:
    """Train a guard on the records of `data`, calibrate it on `validation`, and write the guard directory `output`.

    A call that is killed goes on at the last finished epoch when it is made again with the same arguments.

    Args:
        config: how to train.
        data: parquet of records; every worker reads it, so it lies where all nodes see it.
        validation: records that are not in `data`, of both labels.
        output: the directory to write; whole or absent.
        version: the name that `guard.json` gives.
        seed: decides the order of batches and the dropout.
        start: an earlier guard to train further; None starts from `config.base`.
        cpus_per_worker, gpus_per_worker: what each DDP worker reserves.

    Raises:
        ValueError: no training records, a validation split without both labels, a window that the base cannot read, or
            an `output` that is something else than a guard.
        RuntimeError: workers died more often than `config.max_failures`.
    """
    if output.exists() and not (output / GUARD_FILE).is_file() and not (output.is_dir() and not any(output.iterdir())):
        raise ValueError(f"{output} exists and is no guard; give another path, or remove it")
    truth = np.array([r["unsafe"] for r in validation], dtype=bool)
    if truth.all() or not truth.any():
        raise ValueError("the validation split needs both safe and unsafe records")
    records = read_records(data)
    if not records:
        raise ValueError(f"{data} holds no records to train on")
    source = str(start.resolve()) if start else resolve(config.base)
    _check_window(source, config.window)
    work = output.with_name(f".{output.name}.training")
    settings = {
        "config": config.model_dump(),
        "data": str(data.resolve()),
        "work": str(work.resolve()),
        "start": source,
        "epochs": config.retrain_epochs if start else config.epochs,
        "learning_rate": config.retrain_learning_rate if start else config.learning_rate,
        "seed": seed,
    }
    _discard_other_training(work, settings)
    resources = {"CPU": cpus_per_worker, "GPU": gpus_per_worker}
    result = _Trainer(
        train_loop,
        train_loop_config=settings,
        scaling_config=ScalingConfig(
            num_workers=config.workers, use_gpu=gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=f"guard-{version}",
            storage_path=str(work.resolve()),
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    ).fit()
    if result.error is not None or result.checkpoint is None:
        raise RuntimeError(f"guard training failed; its state is in {work}") from result.error

    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with result.checkpoint.as_directory() as folder:
        shutil.copytree(folder, partial, ignore=shutil.ignore_patterns("training.pt", ".*"))
    manifest = {
        "base": config.base,
        "start": GuardCard.read(start).digest if start else None,
        "seed": seed,
        "records": len(records),
        "unsafe": sum(r["unsafe"] for r in records),
        "truncated": result.metrics["truncated"],
        "epochs": settings["epochs"],
        "tokens": result.metrics["tokens"] * settings["epochs"],
        "loss": result.metrics["loss"],
        "config": config.model_dump(),
        "data": _composition(records),
    }
    card = _calibrate(
        partial, validation, version=version, window=config.window, max_fpr=config.max_fpr, training=manifest
    )
    shutil.rmtree(output, ignore_errors=True)
    os.replace(partial, output)
    shutil.rmtree(work, ignore_errors=True)
    return card


def _check_window(source: str, window: int) -> None:
    config = AutoConfig.from_pretrained(source)
    longest = getattr(config, "max_position_embeddings", None)
    if longest and config.model_type in _POSITIONS_AFTER_PADDING:
        longest -= config.pad_token_id + 1
    if longest and window > longest:
        raise ValueError(f"training.window is {window}, but {source} reads at most {longest} tokens at once")


def _discard_other_training(work: Path, settings: dict[str, Any]) -> None:
    """Remove a killed training's state unless it is of the same settings and data."""
    data = hashlib.sha256(Path(settings["data"]).read_bytes()).hexdigest()
    wanted = digest(json.dumps(settings, sort_keys=True), data)
    name = work / "of"
    if not name.is_file() or name.read_text() != wanted:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        name.write_text(wanted)


def _composition(records: Sequence[Record]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for record in records:
        key = f"{record['method']}/{'unsafe' if record['unsafe'] else 'safe'}"
        counts[key] = counts.get(key, 0) + 1
    return dict(sorted(counts.items()))


def _calibrate(
    directory: Path,
    validation: Sequence[Record],
    *,
    version: str,
    window: int,
    max_fpr: float,
    training: dict[str, Any],
) -> GuardCard:
    """Set temperature and threshold on the validation split and write `guard.json`."""
    card = write_card(
        directory, version=version, temperature=1.0, thresholds={UNSAFE: 0.5}, window=window, training=training
    )
    truth = np.array([r["unsafe"] for r in validation], dtype=bool)
    logits = Guard.from_pretrained(directory).logits([joined(r["text"], r["response"]) for r in validation])[:, 0]
    temperature = fit_temperature(logits, truth)
    probabilities = 1.0 / (1.0 + np.exp(-logits / temperature))
    threshold = choose_threshold(probabilities, truth, max_fpr)
    training = {**training, "validation": binary_metrics(truth.tolist(), probabilities.tolist(), threshold)}
    values = {**dataclasses.asdict(card), "temperature": temperature, "thresholds": {UNSAFE: threshold}}
    values.pop("digest")
    return write_card(directory, **{**values, "taxonomy": card.taxonomy, "training": training})

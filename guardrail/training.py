"""Fine-tuning the guard: records are tokenised on Ray Data, DDP on Ray Train (`guardrail.training_loop`), calibration.

What comes of it is a guard directory.
"""

import functools
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import ray.train
from ray.train import CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from transformers import AutoConfig

from guardrail.bases import check_layers, load_tokenizer
from guardrail.blocks import cluster_cpus, mapped
from guardrail.code_digest import code_digest
from guardrail.examples import tokenised
from guardrail.fitted_on import fitted_on
from guardrail.guard_card import GUARD_FILE, GuardCard, content_digest
from guardrail.models import resolve
from guardrail.objective import teacher_scores
from guardrail.records import Record, from_table, read_records
from guardrail.text import digest
from guardrail.training_config import TrainingConfig
from guardrail.training_loop import DATASET, PROGRESS_FILE, train_loop
from guardrail.training_progress import Tell, TrainingError, progress_told
from guardrail.validation import calibrate

logger = logging.getLogger(__name__)

_HERE = Path(__file__).parent
_FEWEST_IN_BLOCK = 2_000  # records: less is done before a second process has begun
#: These number a text's positions from after the padding token's id on.
_POSITIONS_AFTER_PADDING = frozenset(
    {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "data2vec-text"}
)


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
    tell: Tell | None = None,
    board: Path | None = None,
) -> GuardCard:
    """Train a guard on the records of `data`, calibrate it on `validation`, and write the guard directory `output`.

    A call that is killed goes on when it is made again with the same arguments, and so does a worker that is killed: at
    the last step whose state was kept (`config.checkpoint_every`), ending as if nothing had happened. A call that had
    ended trains nothing, and returns the guard that is there.

    Args:
        config: how to train.
        data: parquet of records; it and the base lie where all nodes see them.
        validation: records that are not in `data` and grew from no seed of its records, of both labels.
        output: the directory to write; whole or absent.
        version: the name that `guard.json` gives.
        seed: decides new weights, the order of batches and the dropout.
        start: an earlier guard to train further; None starts from `config.base`.
        cpus_per_worker, gpus_per_worker: what each DDP worker reserves.
        tell: is told how far the training is, from another thread.
        board: folder of a TensorBoard that gets the loss, the learning rate and the validation split's AUPRC.

    Raises:
        ValueError: no training records, a validation split without both labels, a window that the base cannot read,
            records without the teachers' scores, a validation split of a registered evaluation set
            (FittedOnEvaluationSet), or an `output` that is something else than a guard, a link to one included.
        TrainingError: workers failed more often than `config.max_failures`, or the training diverged.
    """
    if output.is_symlink():
        raise ValueError(f"{output} is a link to a guard; give a directory of its own, and promote it afterwards")
    if output.exists() and not (output / GUARD_FILE).is_file() and not (output.is_dir() and not any(output.iterdir())):
        raise ValueError(f"{output} exists and is no guard; give another path, or remove it")
    truth = np.array([r["unsafe"] for r in validation], dtype=bool)
    if truth.all() or not truth.any():
        raise ValueError("the validation split needs both safe and unsafe records")
    records = read_records(data)
    if not records:
        raise ValueError(f"{data} holds no records to train on")
    teacher_scores(records, config.teachers)
    fitted_on("validation split", [r["id"] for r in validation], [r["source"] for r in validation])
    source = str(start.resolve()) if start else resolve(config.base)
    _check_base(source, config)
    work = output.with_name(f".{output.name}.training")
    settings = {
        "config": config.model_dump(),
        "data": str(data.resolve()),
        "work": str(work.resolve()),
        "start": source,
        "new_head": not (Path(source) / GUARD_FILE).is_file(),
        "epochs": config.retrain_epochs if start else config.epochs,
        "learning_rate": config.retrain_learning_rate if start else config.learning_rate,
        "seed": seed,
        "board": str(board.resolve()) if board else None,
        "validation": [(r["text"], r["response"], r["unsafe"]) for r in validation] if config.patience else [],
    }
    origin = _origin(settings, validation, version)
    if made := _made_before(output, origin):
        logger.warning("%s is what this training makes, and is not trained again; remove it to train anew", output)
        shutil.rmtree(work, ignore_errors=True)
        return made
    _discard_other_training(work, settings)
    resources = {"CPU": cpus_per_worker, "GPU": gpus_per_worker}
    # Ray's watcher tells workers that their node will be taken away, which they need not know: what they have done
    # is kept anyway. It is one more process to wait for, as long as importing takes, at the start of every training.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    trainer = _Trainer(
        train_loop,
        train_loop_config=settings,
        datasets={DATASET: _tokenised(data, source, config, seed, len(records))} if config.workers else None,
        dataset_config=DataConfig(datasets_to_split=[]),
        scaling_config=ScalingConfig(
            num_workers=config.workers, use_gpu=gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=f"guard-{version}",
            storage_path=str(work.resolve()),
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    try:
        with progress_told(work / PROGRESS_FILE, tell):
            result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        of_workers = [each for each in getattr(error, "worker_failures", {}).values() if each is not None]
        why = str((of_workers or [error])[0]).strip().splitlines() or [type(error).__name__]
        raise TrainingError(f"guard training failed ({why[-1]}); its state is in {work}") from error
    if result.checkpoint is None:
        raise TrainingError(
            "guard training diverged: its loss is no longer a number at a learning rate of "
            f"{settings['learning_rate']:g}; train with a lower learning rate"
        )

    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with result.checkpoint.as_directory() as folder:
        shutil.copytree(folder, partial, ignore=shutil.ignore_patterns(".*"))
    manifest = {
        "base": config.base,
        "start": GuardCard.read(start).digest if start else None,
        "seed": seed,
        "records": len(records),
        "unsafe": sum(r["unsafe"] for r in records),
        "truncated": result.metrics["truncated"],
        "epochs": result.metrics["epochs"],
        "out_of_time": result.metrics["out_of_time"],
        "tokens": result.metrics["tokens"],
        "loss": result.metrics["loss"],
        "config": config.model_dump(),
        "data": _composition(records),
        "data_digest": digest(*sorted(f"{record['id']} {record['unsafe']}" for record in records)),
        "origin": origin,
    }
    card = calibrate(
        partial, validation, version=version, window=config.window, max_fpr=config.max_fpr, training=manifest
    )
    shutil.rmtree(output, ignore_errors=True)
    os.replace(partial, output)
    shutil.rmtree(work, ignore_errors=True)
    return card


def _tokenised(data: Path, base: str, config: TrainingConfig, seed: int, records: int) -> ray.data.Dataset:
    """Tokenise records over the cluster, in whose memory they stay: a worker that takes another's place finds them.

    The CPUs that this takes are those of the training that waits for it, or makes it again where a node was lost: tasks
    reserve none.
    """
    size = -(-records // min(2 * cluster_cpus(), -(-records // _FEWEST_IN_BLOCK)))
    step = functools.partial(_tokenised_rows, data.resolve(), size, base, config, seed)
    return mapped(step, [{"first": first} for first in range(0, records, size)], num_cpus=0)


def _tokenised_rows(data: Path, size: int, base: str, config: TrainingConfig, seed: int, block: pa.Table) -> pa.Table:
    rows = [pq.read_table(data).slice(first, size) for first in block["first"].to_pylist()]
    return tokenised(from_table(pa.concat_tables(rows)), _tokenizer(base), config, seed)


_tokenizer = functools.lru_cache(maxsize=1)(load_tokenizer)  # of a process of Ray's, which takes several blocks


def _check_base(source: str, config: TrainingConfig) -> None:
    """Raise ValueError where a base cannot be trained so: a worker would find out late, and again and again."""
    base = AutoConfig.from_pretrained(source)
    check_layers(base, source, config.layers)
    if config.freeze_layers > (layers := config.layers or base.num_hidden_layers):
        raise ValueError(f"training.freeze_layers is {config.freeze_layers}, and the guard will have {layers} layers")
    longest = getattr(base, "max_position_embeddings", None)
    if longest and base.model_type in _POSITIONS_AFTER_PADDING:
        longest -= base.pad_token_id + 1
    if longest and config.window > longest:
        raise ValueError(f"training.window is {config.window}, but {source} reads at most {longest} tokens at once")


def _origin(settings: dict[str, Any], validation: Sequence[Record], version: str) -> str:
    """Return the digest of all that decides which guard a training makes; where it lies does not."""
    deciding = {key: value for key, value in settings.items() if key not in ("data", "start", "work", "board")}
    told = [(r["id"], r["unsafe"], r["categories"]) for r in validation]
    return digest(json.dumps([deciding, told, version], sort_keys=True), *_contents(settings), code_digest(_HERE))


def _contents(settings: dict[str, Any]) -> tuple[str, str]:
    """Return the digests of the data and of the base's files; the name of a base on a hub."""
    data = hashlib.sha256(Path(settings["data"]).read_bytes()).hexdigest()
    start = Path(settings["start"])
    return data, content_digest(start) if start.is_dir() else settings["start"]


def _made_before(output: Path, origin: str) -> GuardCard | None:
    """Return the card of the guard in `output` if it is whole and a training of this origin made it."""
    try:
        card = GuardCard.read(output)
    except ValueError:
        return None
    return card if card.training.get("origin") == origin and card.digest == content_digest(output) else None


def _discard_other_training(work: Path, settings: dict[str, Any]) -> None:
    """Remove a killed training's state unless it is of the same settings and data."""
    wanted = digest(json.dumps(settings, sort_keys=True), *_contents(settings))
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

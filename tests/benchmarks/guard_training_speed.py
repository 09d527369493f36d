"""What guard training costs beside transformers' Trainer and a bare torch loop, and on two workers beside one.

python -m tests.benchmarks.guard_training_speed [--data RECORDS.parquet] [--records 2000] [--base BASE] [--repeats 3]

Examples per second of one epoch, without loading, tokenising and the first steps; records are the embedded seeds unless
a file is given. All sides start from one model, train the same weights (token embeddings frozen), know the same tokens
and compute with all cores; they take turns, and each ratio is the median over the turns.

- ours: `fine_tune` in the calling process.
- Trainer: its defaults (random batches, AdamW as it sets it up, mean over all labels), but for as many rows a batch as
  make our tokens per batch, padding included, on average. It needs accelerate (the extra [train] has it).
- bare: our batches, a mean binary cross-entropy, clipped gradients, fused AdamW, and nothing else.
- DDP: one worker of Ray Train with half of the cores, and two with half each; `ddp2_efficiency` is the rate of two over
  twice that of one. Both compute the same steps: what a worker's half batch loses in efficiency counts.
"""

import argparse
import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import ray.train
import torch
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import is_accelerate_available

from cluster.connect import connect
from guardrail import training, training_loop
from guardrail.bases import load_base
from guardrail.examples import Examples, epoch_batches, examples_of, tokenised
from guardrail.models import resolve
from guardrail.optimisation import choose_trainable, train_mode
from guardrail.records import Record, read_records, write_records
from guardrail.seeds import embedded_seeds
from guardrail.training import fine_tune
from guardrail.training_config import TrainingConfig

Begun = list[tuple[float, int]]  #: when each step began [s], and its examples
_WARM_UP = 3  # steps that are not counted
_VALIDATION = 20  # records of each label: what calibrates a guard, which is not measured


def rate(begun: Begun) -> float:
    """Return examples per second between the first step that counts and the beginning of the last."""
    if len(begun) < _WARM_UP + 2:
        raise SystemExit(f"error: an epoch has only {len(begun)} steps; give more --records")
    counted = begun[_WARM_UP:]
    return sum(examples for _, examples in counted[:-1]) / (counted[-1][0] - counted[0][0])


# --- The sides ------------------------------------------------------------------------------------------------------


def timed_loop(cores: int, settings: dict[str, Any]) -> None:
    """Train as `train_loop` does on a machine of so many cores, and write when each step began beside the data."""
    begun: Begun = []
    compute = training_loop.step_gradients

    def step(model: torch.nn.Module, data: Examples, batch: list[int], *others: Any) -> torch.Tensor:
        begun.append((time.perf_counter(), len(batch)))
        return compute(model, data, batch, *others)

    with (
        mock.patch.object(training_loop, "step_gradients", step),
        mock.patch.object(training_loop.os, "cpu_count", return_value=cores),
    ):
        training_loop.train_loop(settings)
    if ray.train.get_context().get_world_rank() == 0:
        Path(settings["data"]).with_suffix(".json").write_text(json.dumps(begun))


def ours(config: TrainingConfig, data: Path, validation: Sequence[Record], cores: int) -> float:
    """Return the rate of `fine_tune`; `cores` are those of all workers together."""
    with (
        tempfile.TemporaryDirectory() as name,
        mock.patch.object(training, "train_loop", functools.partial(timed_loop, cores)),
    ):
        fine_tune(config, data=data, validation=validation, output=Path(name) / "guard", version="speed", seed=0)
    return rate(json.loads(data.with_suffix(".json").read_text()))


def bare(config: TrainingConfig, examples: Examples) -> float:
    """Return the rate of a loop that has only what training needs."""
    model, tokenizer = _model(config)
    train_mode(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    begun: Begun = []
    for batch in epoch_batches(examples.lengths, config.tokens_per_batch, 0):
        begun.append((time.perf_counter(), len(batch)))
        padded = tokenizer.pad({"input_ids": [examples.input_ids[i] for i in batch]}, return_tensors="pt")
        targets = torch.from_numpy(examples.targets[batch])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(**padded).logits, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return rate(begun)


class _Watch(TrainerCallback):
    def __init__(self, rows: int) -> None:
        self.rows, self.begun = rows, Begun()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.begun.append((time.perf_counter(), self.rows))


def trainer(config: TrainingConfig, examples: Examples, rows: int) -> float:
    """Return the rate of transformers' Trainer."""
    model, tokenizer = _model(config)
    data = [
        {"input_ids": ids, "labels": targets}
        for ids, targets in zip(examples.input_ids, examples.targets.tolist(), strict=True)
    ]
    watch = _Watch(rows)
    with tempfile.TemporaryDirectory() as name:
        arguments = TrainingArguments(
            output_dir=name, num_train_epochs=1, per_device_train_batch_size=rows, report_to=[], disable_tqdm=True
        )
        collator = DataCollatorWithPadding(tokenizer)
        Trainer(model, arguments, data_collator=collator, train_dataset=data, callbacks=[watch]).train()
    return rate(watch.begun)


def _model(config: TrainingConfig) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model, tokenizer = load_base(resolve(config.base))
    choose_trainable(model, config)
    return model, tokenizer


def rows_of(lengths: Sequence[int], tokens: int) -> int:
    """Return how many random rows make a batch of so many tokens, padding included, on average."""
    random = np.random.default_rng(0)
    rows = 1
    while (rows + 1) * random.choice(lengths, (2000, rows + 1)).max(axis=1).mean() <= tokens:
        rows += 1
    return rows


# --- The comparison -------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> None:
    """Let the sides take turns, and print the table and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="parquet of records; None: the embedded seeds")
    parser.add_argument("--records", type=int, default=2000)
    parser.add_argument("--base", default=TrainingConfig().base)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    if not is_accelerate_available():
        raise SystemExit("error: transformers' Trainer needs accelerate: pip install 'rayguard[train]'")
    records = read_records(options.data) if options.data else embedded_seeds()
    records = [records[i] for i in np.random.default_rng(0).permutation(len(records))[: options.records]]
    validation = [r for label in (True, False) for r in [r for r in records if r["unsafe"] is label][:_VALIDATION]]
    config = TrainingConfig(base=options.base, epochs=1, workers=0)
    examples = examples_of(tokenised(records, _model(config)[1], config, 0), config)
    rows = rows_of(examples.lengths, config.tokens_per_batch)
    cores = os.cpu_count() or 1
    half = max(1, cores // 2)
    torch.set_num_threads(cores)
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name, connect():
        data = Path(name) / "records.parquet"
        write_records(records, data)

        def ddp(workers: int) -> float:
            return ours(config.model_copy(update={"workers": workers}), data, validation, half * workers)

        sides: dict[str, Callable[[], float]] = {
            "ours": lambda: ours(config, data, validation, cores),
            "trainer": lambda: trainer(config, examples, rows),
            "bare": lambda: bare(config, examples),
            "ddp1": lambda: ddp(1),
            "ddp2": lambda: ddp(2),
        }
        for _ in range(options.repeats):
            for side, measure in sides.items():
                rates.setdefault(side, []).append(measure())
                print(f"{side}: {rates[side][-1]:.1f} examples/s", file=sys.stderr, flush=True)
    print(f"{len(records)} records, {config.tokens_per_batch} tokens a batch; Trainer: {rows} rows")
    print(f"{'side':8} {'examples/s':>11}")
    for side, found in rates.items():
        print(f"{side:8} {median(found):11.1f}")

    def ratio(side: str, other: str) -> float:
        return round(median(a / b for a, b in zip(rates[side], rates[other], strict=True)), 3)

    figures = {
        "examples_per_second_vs_hf_trainer": ratio("ours", "trainer"),
        "vs_bare_loop": ratio("ours", "bare"),
        "ddp2_efficiency": round(ratio("ddp2", "ddp1") / 2, 3),
        "examples_per_second": round(median(rates["ours"]), 1),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1:])

"""What the guard is trained on: records written anew by transforms, tokenised, and in the batches of an epoch."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from guardrail.batching import token_batches
from guardrail.disguise import read_as
from guardrail.generable import generation_seeds
from guardrail.objective import balanced, distilled, smoothed, teacher_scores
from guardrail.reading import reading_of, windows
from guardrail.records import Record, from_table, to_table
from guardrail.taxonomy import CATEGORY_INDEX, LABELS
from guardrail.text import canonical, digest
from guardrail.training_config import TrainingConfig
from guardrail.transforms import TRANSFORMS, transformed

_OFTEN = ("char_swap", "char_drop", "benign_prefix", "benign_suffix")  # what no reading, or not every one, undoes


@dataclasses.dataclass(frozen=True)
class Examples:
    """Tokenised records.

    Attributes:
        input_ids: ragged.
        targets: probability of each label, float32 [n, labels], "unsafe" first.
        weights: how much it counts, the same shape; 0: it is not known.
        truncated: records that are longer than the window.
    """

    input_ids: list[list[int]]
    targets: np.ndarray
    weights: np.ndarray
    truncated: int

    @functools.cached_property
    def lengths(self) -> list[int]:
        """Tokens of each record."""
        return [len(ids) for ids in self.input_ids]


def tokenised(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, config: TrainingConfig, seed: int
) -> pa.Table:
    """Return records and what transforms make of some, with the tokens of the first window of each.

    A record's row depends on that record alone, so that parts of the data can be tokenised anywhere.

    Returns:
        A table of the records' schema with `input_ids` (ragged) and `truncated`: it is longer than the window.
    """
    written = augmented(records, config.augment, seed)
    read = windows([reading_of(r["text"], r["response"]) for r in written], tokenizer, config.window)
    ids = pa.array([of_record[0].ids for of_record in read], pa.list_(pa.int32()))
    truncated = pa.array([len(of_record) > 1 for of_record in read], pa.bool_())
    return to_table(written).append_column("input_ids", ids).append_column("truncated", truncated)


def examples_of(table: pa.Table, config: TrainingConfig) -> Examples:
    """Return what `tokenised` made, in an order that depends on the rows alone, as what is learned from.

    Unknown categories of unsafe records have no weight.

    Raises:
        ValueError: the records lack what `config.teachers` names.
    """
    table = table.sort_by([(name, "ascending") for name in ("id", "text", "response", "unsafe")])
    records = from_table(table)
    targets = np.zeros((len(records), len(LABELS)))
    weights = np.ones_like(targets)
    for row, record in enumerate(records):
        targets[row, 0] = record["unsafe"]
        if record["unsafe"] and record["categories"] is None:
            weights[row, 1:] = 0.0
        for key in record["categories"] or ():
            targets[row, 1 + CATEGORY_INDEX[key]] = 1.0
    targets = smoothed(targets, config.label_smoothing)
    if config.teachers:
        targets[:, 0] = distilled(targets[:, 0], teacher_scores(records, config.teachers), config.distil)
    weights *= balanced(records, config.balance)[:, None]
    return Examples(
        input_ids=table["input_ids"].to_pylist(),
        targets=targets.astype(np.float32),
        weights=weights.astype(np.float32),
        truncated=sum(table["truncated"].to_pylist()),
    )


def augmented(records: Sequence[Record], share: float, seed: int) -> list[Record]:
    """Return the records, and behind them a share of them as a transform drawn for each of them writes it.

    Two of three draws are typing errors and sentences about nothing around a text: what a guard has to bear by itself.

    What a guard can decode it reads in plain letters as well (`guardrail.disguise.read_as`). As it is written it shall
    then say nothing, so of these only benign records are written: a disguise alone is no reason to flag a text.
    """
    written = list[Record]()
    names = [*TRANSFORMS, *(_OFTEN * (2 * len(TRANSFORMS) // len(_OFTEN)))]
    for record in generation_seeds(records):
        random = np.random.default_rng(int(digest(str(seed), record["id"]), 16))
        if random.random() >= share:
            continue
        other = transformed(record, names[int(random.integers(len(names)))], seed)
        decoded = read_as(other["text"])[-1] == canonical(record["text"])
        if other["id"] != record["id"] and not (decoded and record["unsafe"]):
            written.append(other | {"scores": record["scores"]})  # teachers' opinion of what it says
    return [*records, *written]


def epoch_batches(lengths: Sequence[int], budget: int, seed: int) -> list[list[int]]:
    """Return an epoch's batches of indices, each index once: shuffled, of similar length and rising within a batch."""
    generator = np.random.default_rng(seed)
    # Sorting by length plus a random offset keeps padding low while the batches differ from epoch to epoch.
    jitter = np.asarray(lengths) * (1 + 0.2 * generator.random(len(lengths)))
    batches = token_batches(np.argsort(jitter, kind="stable").tolist(), lengths, budget)
    return [batches[index] for index in generator.permutation(len(batches))]

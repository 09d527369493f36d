import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from guardrail.disguise import read_as
from guardrail.examples import augmented, epoch_batches, examples_of, tokenised
from guardrail.generable import generation_seeds
from guardrail.records import make_record
from guardrail.seeds import embedded_seeds
from guardrail.taxonomy import LABELS
from guardrail.text import canonical
from guardrail.training_config import TrainingConfig
from tests.tiny_guard import tiny_guard


def test_a_disguise_is_trained_on_with_benign_texts_and_clutter_with_both():
    seeds = embedded_seeds()[::4]
    assert augmented(seeds, 0.0, 0) == seeds
    written = augmented(seeds, 0.5, 0)[len(seeds) :]
    by_id = {seed["id"]: seed for seed in generation_seeds(seeds)}
    assert 0.2 * len(by_id) < len(written) < 0.5 * len(by_id)
    decoded = [read_as(r["text"])[-1] == canonical(by_id[r["parent_id"]]["text"]) for r in written]
    assert not any(r["unsafe"] for r, can_be in zip(written, decoded, strict=True) if can_be)
    assert {r["unsafe"] for r, can_be in zip(written, decoded, strict=True) if not can_be} == {True, False}
    often = [f"transform:{name}" for name in ("char_swap", "char_drop", "benign_prefix", "benign_suffix")]
    assert sum(r["method"] in often for r in written) > len(written) / 2
    assert all(r["unsafe"] == by_id[r["parent_id"]]["unsafe"] for r in written)
    assert [r["id"] for r in written] == [r["id"] for r in augmented(seeds, 0.5, 0)[len(seeds) :]]


def test_what_is_not_known_has_no_weight_and_what_is_too_long_is_counted(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_guard(tmp_path / "guard"))
    records = [
        make_record("bread", unsafe=False, source="s", scores={"teacher": 0.3}, id="1"),
        make_record("knife", unsafe=True, source="s", categories=["fraud"], id="2"),
        make_record("a" * 30, unsafe=True, source="s", id="3"),
    ]
    data = examples_of(tokenised(records, tokenizer, TrainingConfig(window=16), 0), TrainingConfig(window=16))
    fraud = LABELS.index("fraud")
    assert data.targets[:, 0].tolist() == [0.0, 1.0, 1.0]
    assert data.targets[1].sum() == 2.0 and data.targets[1, fraud] == 1.0
    assert data.weights[:2].all() and data.weights[2, 0] == 1.0 and not data.weights[2, 1:].any()
    assert data.lengths == [7, 7, 16] and data.truncated == 1

    changed = TrainingConfig(window=16, teachers=("teacher",), distil=0.5, label_smoothing=0.2, balance=1.0)
    data = examples_of(tokenised(records, tokenizer, changed, 0), changed)
    assert data.targets[:, 0] == pytest.approx([0.5 * 0.1 + 0.5 * 0.3, 0.9, 0.9])
    assert data.targets[1, fraud] == pytest.approx(0.9) and data.targets[0, fraud] == pytest.approx(0.1)
    assert data.weights[:, 0] == pytest.approx([1.5, 0.75, 0.75])
    assert not data.weights[2, 1:].any()


def test_examples_are_the_same_in_whatever_parts_and_order_records_are_tokenised(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_guard(tmp_path / "guard"))
    records, config = embedded_seeds()[:60], TrainingConfig(window=16, augment=0.5)
    whole = examples_of(tokenised(records, tokenizer, config, 3), config)
    parts = [tokenised(part, tokenizer, config, 3) for part in (records[40:], records[:10], records[10:40])]
    apart = examples_of(pa.concat_tables(parts), config)
    assert apart.input_ids == whole.input_ids and len(whole.input_ids) > len(records)
    assert (apart.targets == whole.targets).all() and (apart.weights == whole.weights).all()


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=80), seed=st.integers(0, 9))
def test_an_epoch_has_every_record_once_in_batches_within_the_budget(lengths, seed):
    batches = epoch_batches(lengths, 100, seed)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(max(lengths[i] for i in batch) * len(batch) <= 100 for batch in batches)
    assert batches == epoch_batches(lengths, 100, seed)


def test_batches_hold_records_of_similar_length_and_differ_between_epochs():
    lengths = np.random.default_rng(0).integers(5, 200, 400).tolist()
    first, second = (epoch_batches(lengths, 1000, seed) for seed in (0, 1))
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in first)
    assert padded < 1.25 * sum(lengths)
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}

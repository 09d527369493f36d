"""Targets, weights and loss against values computed by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guardrail.bases import load_base
from guardrail.objective import (
    Totals,
    balanced,
    distilled,
    guard_loss,
    moved,
    smoothed,
    start_at_priors,
    teacher_scores,
    watched,
    worst_step,
)
from guardrail.records import make_record
from guardrail.taxonomy import LABELS
from tests.tiny_guard import tiny_decoder_guard, tiny_guard


def record(text, unsafe=True, source="s", **scores):
    return make_record(text, unsafe=unsafe, source=source, scores=scores)


def test_smoothing_moves_targets_towards_a_half():
    assert smoothed(np.array([0.0, 1.0, 0.5]), 0.2) == pytest.approx([0.1, 0.9, 0.5])


def test_teachers_are_averaged_and_mixed_into_the_labels_they_speak_of():
    records = [record("a", one=0.2, two=0.4), record("b", two=1.0), record("c", other=0.1), record("d", one=None)]
    scores = teacher_scores(records, ["one", "two"])
    assert scores == pytest.approx([0.3, 1.0, np.nan, np.nan], nan_ok=True)
    mixed = distilled(np.array([1.0, 0.0, 1.0, 0.0]), scores, 0.25)
    assert mixed == pytest.approx([0.75 + 0.25 * 0.3, 0.25, 1.0, 0.0])
    assert np.isnan(teacher_scores(records, ())).all()


def test_a_teacher_that_says_nothing_or_no_probabilities_is_refused():
    with pytest.raises(ValueError, match="names 'three', but no record"):
        teacher_scores([record("a", one=0.2)], ["one", "three"])
    with pytest.raises(ValueError, match=r"'one' lie between 0.5 and 3.0, not in \[0, 1\]"):
        teacher_scores([record("a", one=3.0), record("b", one=0.5)], ["one"])


def test_records_weigh_as_their_source_and_label_are_rare():
    records = [record(f"many {i}") for i in range(4)] + [record("few", unsafe=False)]
    assert balanced(records, 0.0) == pytest.approx([1.0] * 5)
    # 4 records of weight 1/2 and one of weight 1, divided by their mean of 3/5
    assert balanced(records, 0.5) == pytest.approx([5 / 6] * 4 + [5 / 3])
    assert balanced(records, 1.0)[:4].sum() == pytest.approx(balanced(records, 1.0)[4])
    assert balanced([record("a"), record("b", source="t")], 1.0) == pytest.approx([1.0, 1.0])


def test_the_loss_is_the_mean_over_what_is_known():
    logits = torch.tensor([[0.0, 0.0, math.log(3)], [math.log(3), 5.0, 5.0]])
    targets = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    weights = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])  # the second's categories are unknown
    unsafe = (math.log(2) + math.log(4)) / 2  # sigmoid(log 3) = 3/4
    categories = math.log(2) + math.log(4 / 3)  # of one record
    loss = guard_loss(logits, targets, weights, Totals.of(weights.numpy()), 2.0)
    assert loss.item() == pytest.approx(unsafe + 2 * categories, rel=1e-6)
    weights[0] *= 3
    loss = guard_loss(logits, targets, weights, Totals.of(weights.numpy()), 0.0)
    assert loss.item() == pytest.approx((3 * math.log(2) + math.log(4)) / 4, rel=1e-6)
    assert Totals.of(np.zeros((2, 3))) == (1.0, 1.0)  # nothing is known: the loss is 0


@pytest.mark.parametrize("has_bias", [True, False], ids=["encoder", "decoder"])
def test_a_new_head_begins_with_how_frequent_labels_are(tmp_path, has_bias):
    base = tiny_guard(tmp_path / "base") if has_bias else tiny_decoder_guard(tmp_path / "base")
    model, tokenizer = load_base(str(base))
    texts = tokenizer(["a tea", "bake some bread today", "wash"] * 4, padding=True, return_tensors="pt")
    targets = np.zeros((40, len(LABELS)))
    targets[:10, 0] = targets[:4, 1] = 1
    weights = np.ones_like(targets)
    weights[4:10, 1:] = 0  # whose categories are unknown
    start_at_priors(model.eval(), targets, weights, texts)
    logits = model(**texts).logits.mean(dim=0)
    expected = [math.log(1 / 3), math.log(4 / 30), math.log(0.001 / 0.999)]
    assert logits[:3].tolist() == pytest.approx(expected, abs=1e-3)


@given(rows=st.integers(1, 7), cut=st.integers(0, 7), seed=st.integers(0, 99))
def test_parts_of_a_batch_add_up_to_the_whole(rows, cut, seed):
    random = torch.Generator().manual_seed(seed)
    logits, targets, weights = (torch.rand(rows, 4, generator=random) for _ in range(3))
    weights[:, 1:] *= torch.rand(rows, 3, generator=random) > 0.5
    totals = Totals.of(weights.numpy())
    whole, *parts = (
        guard_loss(logits[part], targets[part], weights[part], totals, 2.0)
        for part in (slice(None), slice(cut), slice(cut, None))
    )
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-5)


def test_the_worst_step_goes_along_the_gradient_as_far_as_the_text_is_long():
    embeddings = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [9.0, 9.0]], [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]])
    gradient = torch.tensor([[[0.0, 2.0], [0.0, 0.0], [7.0, 7.0]], [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])  # the first text's last token is padding
    step = worst_step(embeddings, gradient, mask, 0.1)
    assert step[0].tolist() == [[0.0, pytest.approx(0.5)], [0.0, 0.0], [0.0, 0.0]]
    assert not step[1].any()  # no gradient, no direction


@pytest.mark.parametrize("frozen", [False, True])
def test_a_step_in_embedding_space_raises_the_loss(frozen):
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(10, 8)
    embedding.weight.requires_grad_(not frozen)
    head = torch.nn.Linear(8, 1)
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])

    def loss():
        return torch.nn.functional.softplus(head(embedding(ids).mean(dim=1))).sum()

    with watched(embedding) as outputs:
        plain = loss()
        plain.backward()
    (output,) = outputs
    assert (embedding.weight.grad is None) == frozen
    with moved(embedding, worst_step(output.detach(), output.grad, torch.ones_like(ids), 0.1)):
        assert loss() > plain + 1e-3
    assert loss() == plain  # both hooks are gone

"""The attackers' loss and its advantages against values worked out by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from actors.config import ObjectiveConfig
from actors.loss import Row, balanced_advantages, group_advantages, imitation_advantages, policy_loss, train_batches
from actors.module import ADVANTAGES, ENGINE_LOGPROBS, INPUT_IDS, SEGMENTS, completion_lengths, completion_starts


def loss_of(logprobs, engine, reference, advantages, mask, *, old=None, max_new_tokens=2, completions=None, **options):
    """The loss of rows with one completion and one advantage each."""
    objective = ObjectiveConfig(**{"clip": 0.2, "clip_high": 0.2, "kl_coefficient": 0.0, **options})
    given = (logprobs, engine, engine if old is None else old, reference)
    tensors = [torch.tensor(values, dtype=torch.float64) for values in given]
    mask = torch.tensor(mask, dtype=torch.bool)
    advantages = torch.tensor(advantages, dtype=torch.float64)[:, None].expand_as(mask)
    return policy_loss(
        *tensors,
        advantages,
        mask,
        mask.sum(1, keepdim=True).expand_as(mask),
        completions=completions or int(mask.any(dim=1).sum()),
        max_new_tokens=max_new_tokens,
        objective=objective,
    )


def mean(terms, name, mask=((1,),)):
    return terms.logged(torch.tensor(mask, dtype=torch.bool))[name].item()


def test_advantages_by_hand():
    # mean 2, population standard deviation sqrt(2/3)
    expected = np.array([-1.0, 0.0, 1.0]) / math.sqrt(2 / 3)
    assert np.allclose(group_advantages(np.array([[1.0, 2.0, 3.0]]))[0], expected)


def test_a_group_of_equal_rewards_teaches_nothing():
    assert (group_advantages(np.full((2, 4), 0.7)) == 0).all()


@given(st.lists(st.floats(-5, 5), min_size=4, max_size=4), st.floats(0.1, 10), st.floats(-3, 3))
def test_advantages_do_not_depend_on_scale_and_shift(rewards, scale, shift):
    group = np.array([rewards])
    if group.std() < 1e-3:
        return
    assert np.allclose(group_advantages(group), group_advantages(group * scale + shift), atol=1e-4)


def test_on_policy_loss_by_hand():
    # ratio 1 everywhere: -(2 tokens x 1 + 1 token x -0.5) / (2 rows x 2 tokens)
    terms = loss_of([[-1, -1], [-2, 0]], [[-1, -1], [-2, 0]], [[-1, -1], [-2, 0]], [1, -0.5], [[1, 1], [1, 0]])
    assert terms.loss.item() == pytest.approx(-(2 - 0.5) / 4)
    assert terms.kl.sum().item() == 0 and terms.clipped.sum().item() == 0


def test_ratios_are_clipped_only_where_that_lowers_the_gain():
    up = loss_of([[math.log(2.0)]], [[0.0]], [[0.0]], [1.0], [[1]], max_new_tokens=1)
    assert up.loss.item() == pytest.approx(-1.2)  # a gain of 2 counts as 1.2
    down = loss_of([[math.log(2.0)]], [[0.0]], [[0.0]], [-1.0], [[1]], max_new_tokens=1)
    assert down.loss.item() == pytest.approx(2.0)  # a loss of 2 counts in full
    assert mean(up, "clipped_share") == 1 and mean(down, "clipped_share") == 0


def test_kl_by_hand():
    gap = -0.5  # reference minus policy
    terms = loss_of([[-1.0]], [[-1.0]], [[-1.5]], [0.0], [[1]], kl_coefficient=0.1, max_new_tokens=1)
    assert mean(terms, "kl") == pytest.approx(math.exp(gap) - gap - 1)
    assert terms.loss.item() == pytest.approx(0.1 * mean(terms, "kl"))


def test_the_upper_clip_can_be_higher():
    terms = loss_of([[math.log(2.0)]], [[0.0]], [[0.0]], [1.0], [[1]], max_new_tokens=1, clip_high=0.5)
    assert terms.loss.item() == pytest.approx(-1.5) and mean(terms, "clipped_share") == 1


def test_length_normalisation_gives_every_completion_the_same_weight():
    rows = [[0.0, 0.0], [0.0, 0.0]]
    terms = loss_of(rows, rows, rows, [1.0, 1.0], [[1, 1], [1, 0]], length_normalised=True)
    assert terms.loss.item() == pytest.approx(-1.0)
    assert loss_of(rows, rows, rows, [1.0, 1.0], [[1, 1], [1, 0]]).loss.item() == pytest.approx(-0.75)


def test_the_importance_weight_of_engine_against_learner_is_truncated():
    arguments = ([[-1.0]], [[-2.0]], [[-1.0]], [1.0], [[1]])
    capped = loss_of(*arguments, old=[[-1.0]], max_new_tokens=1, importance_cap=2.0)
    assert capped.loss.item() == pytest.approx(-2.0)  # e, truncated
    assert mean(capped, "importance_weight") == pytest.approx(2.0) and mean(capped, "ratio") == pytest.approx(1.0)
    free = loss_of(*arguments, old=[[-1.0]], max_new_tokens=1, importance_cap=10.0)
    assert free.loss.item() == pytest.approx(-math.e)


def test_rloo_advantages_by_hand():
    assert np.allclose(group_advantages(np.array([[1.0, 2.0, 6.0]]), "rloo")[0], [-3.0, -1.5, 4.5])


def test_trajectory_balance_is_of_whole_completions():
    with pytest.raises(ValidationError, match="length_normalised false"):
        ObjectiveConfig(advantage="rloo", hold="balance", length_normalised=True)


def test_trajectory_balance_takes_from_what_is_already_likelier_than_under_the_reference():
    segments = torch.tensor([[0, 1, 1, 2, -1], [0, 1, 2, 3, 3]])
    log_ratios = torch.tensor([[0.0, 1.0, 2.0, -1.0, 0.0], [0.0, 1.0, 1.0, 0.5, 0.5]])
    # sums 3 and -1: 4 above and 4 below the other; in the second group all are as much likelier
    balanced = balanced_advantages(torch.ones(2, 5), log_ratios, segments, 0.5)
    assert balanced.tolist() == [[1.0, -1.0, -1.0, 3.0, 1.0], [1.0] * 5]


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 2.0))
def test_trajectory_balance_is_the_gradient_of_the_variance(seed, coefficient):
    random = torch.Generator().manual_seed(seed)
    logprobs = torch.randn(1, 3, generator=random, dtype=torch.float64).requires_grad_()
    reference, rewards = (torch.randn(1, 3, generator=random, dtype=torch.float64) for _ in range(2))
    segments = torch.tensor([[1, 2, 3]])
    residual = logprobs - reference - rewards / coefficient
    (residual.var(correction=1) * coefficient / 2).backward()
    advantages = torch.from_numpy(group_advantages(rewards.numpy(), "rloo"))
    balanced = balanced_advantages(advantages, logprobs - reference, segments, coefficient)
    assert torch.allclose(logprobs.grad, -balanced / 3, atol=1e-9)


def test_the_reference_holds_by_one_term_only():
    held = loss_of([[-1.0]], [[-1.0]], [[-1.5]], [0.0], [[1]], kl_coefficient=0.1, advantage="rloo", hold="balance")
    assert held.loss.item() == 0
    with pytest.raises(ValueError, match="needs advantage 'rloo'"):
        ObjectiveConfig(hold="balance")


def test_the_warm_start_imitates_the_best_that_was_kept():
    rewards, kept = np.array([[0.9, 0.5, 0.7], [0.1, 0.0, 0.0]]), np.array([[False, True, True], [False] * 3])
    assert imitation_advantages(rewards, kept).tolist() == [[0, 0, 1], [0, 0, 0]]


def test_padding_rows_and_columns_do_not_change_the_loss():
    bare = loss_of([[-1.0, -2.0]], [[-1.2, -1.9]], [[-1.1, -2.2]], [0.8], [[1, 1]], kl_coefficient=0.1)
    padded = loss_of(
        [[-1.0, -2.0, 0.0], [0.0, 0.0, 0.0]],
        [[-1.2, -1.9, 0.0], [0.0, 0.0, 0.0]],
        [[-1.1, -2.2, 0.0], [0.0, 0.0, 0.0]],
        [0.8, 0.0],
        [[1, 1, 0], [0, 0, 0]],
        kl_coefficient=0.1,
        completions=1,
    )
    assert padded.loss.item() == pytest.approx(bare.loss.item())


def group(prompt, *completions):
    """A group of (token ids, advantage); the engine's logprobs are the ids' negatives."""
    ids = [list(ids) for ids, _ in completions]
    logprobs = [-np.array(row, dtype=np.float32) for row in ids]
    return Row.of(prompt, ids, logprobs, np.array([advantage for _, advantage in completions]))


def test_spread_over_microbatches_a_step_has_the_gradient_of_one():
    rows = np.random.default_rng(0).normal(size=(3, 4, 2)) - 2
    advantages, mask = [1.0, -0.5, 0.3, 2.0], [[1, 1], [1, 0], [1, 1], [1, 1]]

    def loss(part):
        values = [array[part].tolist() for array in rows]
        return loss_of(*values, advantages[part], mask[part], kl_coefficient=0.1, completions=4).loss.item()

    assert loss(slice(0, 1)) + loss(slice(1, 4)) == pytest.approx(loss(slice(0, 4)))


def test_a_batch_is_ordered_padded_and_keeps_every_value():
    long, short = group([5, 6, 7], ([8, 9], 1.0), ([4], -1.0)), group([5], ([6], -1.0), ([], 1.0))
    (batch,) = train_batches([long, group([1], ([2], 0.0), ([3], 0.0)), short], learners=1, multiple=4)
    assert batch[INPUT_IDS].tolist()[:2] == [[5, 6, 0, 0, 0, 0], [5, 6, 7, 8, 9, 4]]
    assert batch[SEGMENTS].tolist() == [[0, 1, -1, -1, -1, -1], [0, 0, 0, 1, 1, 2], [-1] * 6, [-1] * 6]
    assert batch[ENGINE_LOGPROBS].tolist()[1] == [0, 0, 0, -8, -9, -4]
    assert batch[ADVANTAGES].tolist()[:2] == [[0, -1, 0, 0, 0, 0], [0, 0, 0, 1, 1, -1]]
    starts = completion_starts(torch.from_numpy(batch[SEGMENTS]))
    assert starts.sum(1).tolist() == [1, 2, 0, 0] and starts[1].tolist() == [False, False, False, True, False, True]

    lengths = completion_lengths(torch.from_numpy(batch[SEGMENTS]))
    assert lengths.tolist()[:2] == [[0, 1, 0, 0, 0, 0], [0, 0, 0, 2, 2, 1]]


@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 3))
def test_learners_get_batches_of_equal_shape_that_hold_every_group_once(count, learners, multiple):
    batches = train_batches(
        [group([index + 1], ([9], 1.0), ([8], -1.0)) for index in range(count)], learners=learners, multiple=multiple
    )
    assert len(batches) == learners and len({batch[INPUT_IDS].shape for batch in batches}) == 1
    assert len(batches[0][INPUT_IDS]) % multiple == 0
    first = [row[0] for batch in batches for row in batch[INPUT_IDS] if row.any()]
    assert sorted(first) == list(range(1, count + 1))


def test_nothing_to_learn_makes_no_batch():
    equal = [group([1], ([2], 0.0))]
    assert train_batches(equal, learners=2, multiple=2) is None
    (batch,) = train_batches(equal, learners=1, multiple=1, every=True)  # as trajectory balance needs it
    assert batch[INPUT_IDS].tolist() == [[1, 2]]

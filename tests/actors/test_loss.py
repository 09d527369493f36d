"""The GRPO loss and its advantages against values worked out by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.learner import Group, group_advantages, grpo_loss, train_batch
from actors.module import ADVANTAGES, ENGINE_LOGPROBS, INPUT_IDS, SEGMENTS, completion_starts


def loss_of(logprobs, engine, reference, advantages, mask, **options):
    """The loss of rows with one completion and one advantage each."""
    settings = {"clip": 0.2, "kl_coefficient": 0.0, "max_new_tokens": 2, **options}
    tensors = [torch.tensor(values, dtype=torch.float64) for values in (logprobs, engine, reference)]
    mask = torch.tensor(mask, dtype=torch.bool)
    advantages = torch.tensor(advantages, dtype=torch.float64)[:, None].expand_as(mask)
    return grpo_loss(*tensors, advantages, mask, completions=mask.any(dim=1).sum(), **settings)


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
    assert terms.kl.item() == 0 and terms.clipped_share.item() == 0


def test_ratios_are_clipped_only_where_that_lowers_the_gain():
    up = loss_of([[math.log(2.0)]], [[0.0]], [[0.0]], [1.0], [[1]], max_new_tokens=1)
    assert up.loss.item() == pytest.approx(-1.2)  # a gain of 2 counts as 1.2
    down = loss_of([[math.log(2.0)]], [[0.0]], [[0.0]], [-1.0], [[1]], max_new_tokens=1)
    assert down.loss.item() == pytest.approx(2.0)  # a loss of 2 counts in full


def test_kl_by_hand():
    gap = -0.5  # reference minus policy
    terms = loss_of([[-1.0]], [[-1.0]], [[-1.5]], [0.0], [[1]], kl_coefficient=0.1, max_new_tokens=1)
    assert terms.kl.item() == pytest.approx(math.exp(gap) - gap - 1)
    assert terms.loss.item() == pytest.approx(0.1 * terms.kl.item())


def test_padding_rows_and_columns_do_not_change_the_loss():
    bare = loss_of([[-1.0, -2.0]], [[-1.2, -1.9]], [[-1.1, -2.2]], [0.8], [[1, 1]], kl_coefficient=0.1)
    padded = loss_of(
        [[-1.0, -2.0, 0.0], [0.0, 0.0, 0.0]],
        [[-1.2, -1.9, 0.0], [0.0, 0.0, 0.0]],
        [[-1.1, -2.2, 0.0], [0.0, 0.0, 0.0]],
        [0.8, 0.0],
        [[1, 1, 0], [0, 0, 0]],
        kl_coefficient=0.1,
    )
    assert padded.loss.item() == pytest.approx(bare.loss.item())


def group(prompt, *completions):
    """A group of (token ids, advantage); the engine's logprobs are the ids' negatives."""
    ids = [list(ids) for ids, _ in completions]
    logprobs = [-np.array(row, dtype=np.float32) for row in ids]
    return Group(prompt, ids, logprobs, np.array([advantage for _, advantage in completions]))


def test_a_batch_is_ordered_padded_and_keeps_every_value():
    long, short = group([5, 6, 7], ([8, 9], 1.0), ([4], -1.0)), group([5], ([6], -1.0), ([], 1.0))
    batch = train_batch([long, group([1], ([2], 0.0), ([3], 0.0)), short], multiple=4)
    assert batch[INPUT_IDS].tolist()[:2] == [[5, 6, 0, 0, 0, 0], [5, 6, 7, 8, 9, 4]]
    assert batch[SEGMENTS].tolist() == [[0, 1, -1, -1, -1, -1], [0, 0, 0, 1, 1, 2], [-1] * 6, [-1] * 6]
    assert batch[ENGINE_LOGPROBS].tolist()[1] == [0, 0, 0, -8, -9, -4]
    assert batch[ADVANTAGES].tolist()[:2] == [[0, -1, 0, 0, 0, 0], [0, 0, 0, 1, 1, -1]]
    starts = completion_starts(torch.from_numpy(batch[SEGMENTS]))
    assert starts.sum(1).tolist() == [1, 2, 0, 0] and starts[1].tolist() == [False, False, False, True, False, True]


def test_nothing_to_learn_makes_no_batch():
    assert train_batch([group([1], ([2], 0.0))], multiple=2) is None

"""The learner on a real two-layer Llama, without a cluster: what a step is, however it is cut and corrected."""

import numpy as np
import psutil
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.policy.sample_batch import MultiAgentBatch
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME

from actors import learner
from actors.config import AdversaryConfig, ObjectiveConfig
from actors.env_runner import SPACE
from actors.grpo import GRPOConfig
from actors.loss import Row, train_batches
from actors.module import CausalLMModule
from cluster.resources import plan

GROUPS = [
    Row.of(
        [10 + i, 20, 30][: 2 + i % 2], [[40 + i, 50], [41, 42, 43]], [np.full(2, -5.0), np.full(3, -6.0)], advantages
    )
    for i, advantages in enumerate(np.array([[1.0, -1.0], [-0.5, 0.5], [2.0, -2.0], [0.3, -0.3]]))
]


def updated(model, **settings):
    """The weights after one update on all groups."""
    config = AdversaryConfig(
        model=str(model), trainable_layers=1, group_size=2, max_new_tokens=4, **{"learning_rate": 1e-3, **settings}
    )
    resources = plan(2, 0, num_env_runners=1, num_learners=0, num_guard_workers=1)
    built = GRPOConfig.of(config, resources, seed=0).build_learner(spaces={DEFAULT_MODULE_ID: (SPACE, SPACE)})
    built.build()
    (batch,) = train_batches(GROUPS, learners=1, multiple=config.minibatch)
    built.update(
        batch=MultiAgentBatch({DEFAULT_MODULE_ID: batch}, env_steps=len(batch)),
        timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 8},
        num_epochs=1,
        minibatch_size=config.minibatch,
    )
    return built.module[DEFAULT_MODULE_ID].get_state()


def distance(one, other):
    return max(np.abs(one[name] - other[name]).max() for name in one)


def mean_distance(one, other):
    return np.mean(np.concatenate([np.abs(one[name] - other[name]).ravel() for name in one]))


@pytest.mark.parametrize("objective", [ObjectiveConfig(), ObjectiveConfig(importance_cap=2.0)])
def test_a_step_in_parts_is_one_step(tiny_model, objective):
    whole, in_parts = (updated(tiny_model, minibatch=4, microbatch=count, objective=objective) for count in (None, 1))
    stepped = updated(tiny_model, minibatch=1, objective=objective)
    # The mean, not the largest: Adam's first step divides a gradient by its size, and where that is next to nothing
    # rounding alone moves a weight.
    assert mean_distance(whole, in_parts) < 1e-6
    assert mean_distance(whole, stepped) > 1e-5  # four steps are not one


def rows_at_once(model, monkeypatch, **settings):
    """How many rows are computed at once in an update."""
    seen = []
    forward = CausalLMModule.logprobs

    def seeing(self, input_ids, *arguments):
        seen.append(len(input_ids))
        return forward(self, input_ids, *arguments)

    monkeypatch.setattr(CausalLMModule, "logprobs", seeing)
    updated(model, minibatch=4, **settings)
    return seen


def test_the_memory_says_how_much_is_computed_at_once(tiny_model, monkeypatch):
    monkeypatch.setattr(learner, "free_memory", lambda device: 2**40)
    assert rows_at_once(tiny_model, monkeypatch) == [1, 4]  # the first looks at what a row needs
    monkeypatch.setattr(learner, "free_memory", lambda device: 1)
    assert rows_at_once(tiny_model, monkeypatch) == [1, 1, 1, 1, 1]
    assert rows_at_once(tiny_model, monkeypatch, microbatch=2) == [2, 2]


def test_what_autograd_keeps_is_counted_without_weights():
    layer, x = torch.nn.Linear(8, 4), torch.randn(5, 8, requires_grad=True)
    assert learner.bytes_kept(lambda: layer(x).exp(), layer) == 4 * (5 * 8 + 5 * 4)
    assert 0 < learner.free_memory(torch.device("cpu")) <= psutil.virtual_memory().total


def test_the_importance_cap_bounds_what_the_engine_is_off_by(tiny_model):
    plain = updated(tiny_model, minibatch=4)
    capped = updated(tiny_model, minibatch=4, objective=ObjectiveConfig(importance_cap=2.0))
    assert distance(plain, capped) > 1e-6


def test_the_reference_holds_by_trajectory_balance_too(tiny_model):
    # Groups come one after the other: but for the first, policy and reference are no longer the same.
    free, balance = (
        updated(
            tiny_model,
            minibatch=1,
            objective=ObjectiveConfig(advantage="rloo", hold="balance", kl_coefficient=coefficient),
        )
        for coefficient in (0.0, 1.0)
    )
    assert distance(free, balance) > 1e-6


def test_the_rate_rises_over_the_warm_up(tiny_model):
    before = updated(tiny_model, minibatch=4, learning_rate=1e-12)  # as good as none
    cold, warm = (updated(tiny_model, minibatch=4, warmup_iterations=iterations) for iterations in (3, 0))
    assert 0 < distance(before, cold) < distance(before, warm)

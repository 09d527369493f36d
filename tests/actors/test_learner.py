"""The learner on a real two-layer Llama, without a cluster: what a step is, however it is cut and corrected."""

import numpy as np
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.policy.sample_batch import MultiAgentBatch
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME

from actors.config import AdversaryConfig, ObjectiveConfig
from actors.env_runner import SPACE
from actors.grpo import GRPOConfig
from actors.loss import Row, train_batches
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
    learner = GRPOConfig.of(config, resources, seed=0).build_learner(spaces={DEFAULT_MODULE_ID: (SPACE, SPACE)})
    learner.build()
    (batch,) = train_batches(GROUPS, learners=1, multiple=config.minibatch * config.accumulate)
    learner.update(
        batch=MultiAgentBatch({DEFAULT_MODULE_ID: batch}, env_steps=len(batch)),
        timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 8},
        num_epochs=1,
        minibatch_size=config.minibatch,
    )
    return learner.module[DEFAULT_MODULE_ID].get_state()


def distance(one, other):
    return max(np.abs(one[name] - other[name]).max() for name in one)


def mean_distance(one, other):
    return np.mean(np.concatenate([np.abs(one[name] - other[name]).ravel() for name in one]))


def test_accumulated_minibatches_are_one_step(tiny_model):
    whole = updated(tiny_model, minibatch=4, accumulate=1)
    accumulated, stepped = (updated(tiny_model, minibatch=1, accumulate=count) for count in (4, 1))
    # The mean, not the largest: Adam's first step divides a gradient by its size, and where that is next to nothing
    # rounding alone moves a weight.
    assert mean_distance(whole, accumulated) < 1e-6
    assert mean_distance(whole, stepped) > 1e-5  # four steps are not one


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

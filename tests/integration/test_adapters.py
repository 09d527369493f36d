"""Attackers that train low-rank adapters: the engine gets the merged weights, and a restart begins with them."""

import numpy as np
import pytest

from actors.adversary import Adversary
from cluster.resources import plan_for_cluster
from tests.tiny_adversary import GOALS, tiny_settings
from tests.tiny_guard import tiny_guard


@pytest.mark.long
def test_adapters_learn_reach_the_engine_and_are_restored(ray_cluster, tmp_path, monkeypatch):
    config = tiny_settings(tmp_path / "llama").model_copy(update={"lora_rank": 2})
    guard = tiny_guard(tmp_path / "guard")
    plan = plan_for_cluster(num_env_runners=1, num_learners=0, num_guard_workers=1)

    def attacked():
        adversary = Adversary(config, plan, seed=1)
        try:
            outcome = adversary.attack(1, GOALS, str(guard), tmp_path / "round", lambda done, iteration: None)
            weights = adversary.algorithm.learner_group.get_state()["learner"]["rl_module"]["default_policy"]
            with monkeypatch.context() as patch:  # what the engine has as it is
                patch.setattr(adversary.algorithm.weight_sync, "_send_weights", lambda: None)
                return outcome, weights, adversary.algorithm.weight_sync.send()["probe_max_abs_logprob_diff"]
        finally:
            adversary.stop()

    outcome, weights, difference = attacked()
    learned = [weights[name] for name in weights if "lora_B" in name]  # they start as zeros
    assert learned and all(each.any() for each in learned)
    assert difference < 1e-3
    for iteration in outcome.iterations:
        assert iteration.sync["probe_max_abs_logprob_diff"] < 1e-3 and iteration.sync["weight_distance"] > 0

    again, restored, difference = attacked()  # the round is over: nothing but the restoring is left to do
    assert again.attempts.equals(outcome.attempts)
    assert all(np.array_equal(weights[name], restored[name]) for name in weights)
    assert difference < 1e-3

"""Several learners: they stay the same, share an update, and are replaced when one is killed."""

import os
import signal

import numpy as np
import psutil
import pytest

from actors.adversary import Adversary
from cluster.resources import plan_for_cluster
from tests.tiny_adversary import GOALS, tiny_settings
from tests.tiny_guard import tiny_guard


@pytest.fixture(scope="module")
def attack(ray_cluster, tmp_path_factory):
    """Attack for a round with a fresh adversary, of two learners by default; return it and its learners' weights."""
    settings = tiny_settings(tmp_path_factory.mktemp("llama")).model_copy(
        update={"groups": 8, "minibatch": 4, "microbatch": 1}
    )
    guard = tiny_guard(tmp_path_factory.mktemp("guard") / "guard")

    def start(disturb=lambda adversary: lambda done, iteration: None, learners=2, between=None):
        config = settings.model_copy(update={"learners": learners})
        plan = plan_for_cluster(num_env_runners=1, num_learners=learners, num_guard_workers=1)
        adversary = Adversary(config, plan, seed=1)
        try:
            outcome = adversary.attack(
                1,
                GOALS,
                str(guard),
                tmp_path_factory.mktemp("round"),
                disturb(adversary),
                updates=3,
            )
            if between is None:
                return outcome, weights(adversary)
            learned = weights(adversary)[0]
            between(adversary)
            directory = tmp_path_factory.mktemp("second")
            adversary.attack(2, GOALS, str(guard), directory, lambda done, iteration: None, updates=1, learn=False)
            return learned, weights(adversary)
        finally:
            adversary.stop()

    return start


@pytest.fixture(scope="module")
def undisturbed(attack):
    return attack()


def weights(adversary):
    """Return the policy's weights in each of the learners."""
    results = adversary.algorithm.learner_group.foreach_learner(
        lambda learner: learner.get_state(components="rl_module")["rl_module"]["default_policy"]
    )
    return [result.get() for result in results]


def equal(one, other, tolerance=0.0):
    return all(np.allclose(one[name], other[name], atol=tolerance, rtol=0) for name in one)


@pytest.mark.long
def test_learners_stay_the_same_and_the_engine_with_them(undisturbed):
    outcome, (first, second) = undisturbed
    assert equal(first, second)
    for iteration in outcome.iterations:
        assert iteration.sync["probe_max_abs_logprob_diff"] < 1e-3 and iteration.sync["weight_distance"] > 0


def kill_learner(adversary):
    pids = adversary.algorithm.learner_group.foreach_learner(lambda learner: os.getpid())
    psutil.Process(next(iter(pids)).get()).send_signal(signal.SIGKILL)


@pytest.mark.long
def test_killed_learners_are_replaced_and_their_iterations_run_again(attack, undisturbed, caplog):
    def disturb(adversary):
        save, saved = adversary._save, []

        def killed_before_its_checkpoint(directory, iterations):
            saved.append(len(iterations))
            if saved.count(2) == 1 and saved[-1] == 2:
                kill_learner(adversary)
            save(directory, iterations)

        adversary._save = killed_before_its_checkpoint
        # ... and one before the second update.
        return lambda done, iteration: kill_learner(adversary) if done == 1 else None

    outcome, (first, second) = attack(disturb)
    assert caplog.text.count("a learner died") == 2
    assert len(outcome.iterations) == 3 and outcome.attempts.equals(undisturbed[0].attempts)
    assert equal(first, second) and equal(first, undisturbed[1][0], tolerance=1e-6)


@pytest.mark.long  # Ray takes its time to find out
def test_learners_that_die_between_two_rounds_come_back_with_what_they_had_learned(attack, caplog):
    learned, (first, second) = attack(between=kill_learner)
    assert caplog.text.count("a learner died") == 1
    assert equal(first, learned) and equal(second, learned)


@pytest.mark.long
def test_how_many_learners_share_an_update_changes_nothing(attack, undisturbed):
    outcome, (alone,) = attack(learners=0)
    assert outcome.attempts.equals(undisturbed[0].attempts)
    assert equal(alone, undisturbed[1][0], tolerance=1e-5)

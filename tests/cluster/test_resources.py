import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.resources import num_scorers, plan

counts = st.integers(0, 16)


@given(st.integers(2, 512), counts, counts, counts)
def test_everything_that_lives_at_once_fits_and_leaves_a_cpu_for_reads(cpus, runners, learners, workers):
    made = plan(cpus, 0, num_env_runners=runners, num_learners=learners, num_guard_workers=workers)
    scorers = num_scorers(runners)
    lasting = runners * made.env_runner_cpus + learners * made.learner_cpus + scorers * made.scorer_cpus
    assert lasting + 1 <= cpus + 1e-6
    assert lasting + workers * made.guard_worker_cpus <= cpus + 1e-6
    assert lasting + made.data_task_cpus <= cpus + 1e-6


@given(st.sampled_from([1, 2, 4, 8, 64]), st.integers(1, 16), counts, counts)
def test_every_actor_finds_its_accelerator_and_no_two_ranks_share_one(gpus, runners, learners, workers):
    ask = functools.partial(plan, 64, gpus, num_env_runners=runners, num_learners=learners, num_guard_workers=workers)
    ranks = sum(count for count in (learners, workers) if count > 1)
    if gpus < ranks + 1:
        with pytest.raises(ValueError, match=f"has {gpus} accelerators and needs {ranks + 1}"):
            ask()
        return
    made = ask()
    kinds = [(runners, made.env_runner_gpus), (learners, made.learner_gpus), (workers, made.guard_worker_gpus)]
    whole = sum(count for count, each in kinds if each == 1)
    assert all(each == 1 for count, each in kinds[1:] if count > 1)
    shares = [each for count, each in kinds for _ in range(count) if each < 1]
    assert all(each == made.env_runner_gpus > 0 for each in shares)
    assert not shares or len(shares) <= (gpus - whole) * int(1 / shares[0])


def test_a_learner_in_the_driver_reserves_nothing():
    assert plan(8, 1, num_env_runners=1, num_learners=0, num_guard_workers=0).learner_gpus == 0


def test_two_cores_run_everything_and_accelerators_are_used_where_there_are_any():
    small = plan(2, 0, num_env_runners=1, num_learners=0, num_guard_workers=1)
    assert (small.env_runner_cpus, small.scorer_cpus, small.guard_worker_cpus) == (0.5, 0.5, 1.0)
    assert small.env_runner_gpus == 0.0
    large = plan(64, 8, num_env_runners=4, num_learners=2, num_guard_workers=2)
    assert large.env_runner_gpus == large.learner_gpus == large.guard_worker_gpus == 1.0


def test_judges_have_their_share_of_the_accelerators():
    one = plan(4, 1, num_env_runners=1, num_learners=0, num_guard_workers=1, num_judges=2)
    assert one.env_runner_gpus * (1 + 2) + one.guard_worker_gpus <= 1


def test_one_cpu_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match="has 1 CPUs and needs 2; add a node"):
        plan(1, 0, num_env_runners=1, num_learners=0, num_guard_workers=1)

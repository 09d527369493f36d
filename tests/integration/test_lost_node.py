"""Nodes that die with the attackers on them, on a cluster of several; engines and models are timed stand-ins."""

from unittest import mock

import pytest
import ray
from ray.cluster_utils import Cluster

from actors.attempts import read_attempts
from tests.benchmarks import adversary_scale
from tests.waiting import until

RUNNERS = 4
WHOLE = RUNNERS * adversary_scale.GROUPS * adversary_scale.GROUP_SIZE


@pytest.fixture
def cluster():
    """A cluster whose head takes no attackers."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def add_node(cluster):
    """Add a node that has room for half of the attackers."""
    return lambda: cluster.add_node(num_cpus=1, resources={"attackers": RUNNERS // 2})


@pytest.fixture
def algorithm(cluster, add_node):
    """Attackers on two nodes."""
    add_node()
    add_node()
    # Else each runner imports the benchmark, and with it torch and RLlib, which takes longer than all the rest.
    ray.cloudpickle.register_pickle_by_value(adversary_scale)
    seconds = {"generate": 5.0, "score": 0.01, "update": 0.1, "sync": 0.01}
    with (
        mock.patch.dict(adversary_scale.SECONDS, seconds),
        adversary_scale.started(RUNNERS, {"attackers": 1}) as algorithm,
    ):
        algorithm.train()
        yield algorithm
    ray.cloudpickle.unregister_pickle_by_value(adversary_scale)


def iteration(algorithm):
    """Run an iteration; return how many attempts it wrote, and by how many attackers."""
    algorithm.train()
    directory = algorithm.rollouts._directory
    attempts = read_attempts(directory)["iteration"].to_pylist()
    last = max(attempts)
    return attempts.count(last), len(list(directory.glob(f"iteration-{last:04d}-*")))


def lose_node(cluster, add_node, algorithm, *, generated):
    """Have a node die in the next iteration, as its attackers generate or when they did; another takes its place."""
    ask = algorithm.rollouts.ask

    def ask_and_lose(*arguments):
        algorithm.rollouts.ask = ask
        asked = ask(*arguments)
        if generated:
            rollouts = list(asked.shares.values())
            ray.wait(rollouts, num_returns=len(rollouts), fetch_local=False)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        add_node()
        return asked

    algorithm.rollouts.ask = ask_and_lose


@pytest.mark.long
def test_an_iteration_outlives_a_node_and_its_attackers_come_back(cluster, add_node, algorithm, caplog):
    lose_node(cluster, add_node, algorithm, generated=False)
    assert iteration(algorithm)[0] == WHOLE // 2  # what the others made
    until(lambda: iteration(algorithm) == (WHOLE, RUNNERS), "all attackers are at work again")
    assert "a node died with what it held" not in caplog.text

    lose_node(cluster, add_node, algorithm, generated=True)
    assert iteration(algorithm)[0] == WHOLE  # what was lost is asked again
    assert "a node died with what it held" in caplog.text
    until(lambda: iteration(algorithm) == (WHOLE, RUNNERS), "all attackers are at work again")

"""Nodes that die with the attackers on them, on a cluster of several; engines and models are timed stand-ins."""

from unittest import mock

import pytest
import ray
from ray.cluster_utils import Cluster

from actors.attempts import read_attempts
from tests.benchmarks import adversary_scale

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
    seconds = {"generate": 1.0, "score": 0.01, "update": 0.1, "sync": 0.01}
    with (
        mock.patch.dict(adversary_scale.SECONDS, seconds),
        adversary_scale.started(RUNNERS, {"attackers": 1}) as algorithm,
    ):
        algorithm.train()
        yield algorithm


def attempts(algorithm):
    """Return how many attempts the last iteration wrote."""
    algorithm.train()
    iterations = read_attempts(algorithm._directory)["iteration"].to_pylist()
    return iterations.count(max(iterations))


@pytest.mark.parametrize(("after", "left"), [("_send_tasks", WHOLE // 2), ("_have_scored", WHOLE)])
def test_an_iteration_outlives_a_node_and_the_next_has_all_attackers(cluster, add_node, algorithm, caplog, after, left):
    lost = next(iter(cluster.worker_nodes))
    called = getattr(algorithm, after)

    def dies(*arguments):
        result = called(*arguments)
        cluster.remove_node(lost, allow_graceful=False)
        add_node()
        setattr(algorithm, after, called)
        return result

    setattr(algorithm, after, dies)
    assert attempts(algorithm) == left
    assert attempts(algorithm) == WHOLE

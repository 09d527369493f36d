"""One local cluster for the tests of a module."""

import pytest

from cluster.connect import connect


@pytest.fixture(scope="module")
def ray_cluster():
    """A Ray cluster of two CPUs, without dashboard."""
    with connect(num_cpus=2):
        yield

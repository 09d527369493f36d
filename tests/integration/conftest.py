"""One local cluster for the tests of a module, and guards to serve on it."""

import pytest

from cluster.connect import connect
from tests.tiny_guard import tiny_guard


@pytest.fixture(scope="module")
def ray_cluster():
    """A Ray cluster of two CPUs, without dashboard."""
    with connect(num_cpus=2):
        yield


@pytest.fixture(scope="module")
def guards(tmp_path_factory):
    """Two guards that disagree: the first finds next to nothing unsafe, the second nearly everything."""
    directory = tmp_path_factory.mktemp("guards")
    return tiny_guard(directory / "0", seed=0), tiny_guard(directory / "3", seed=3)

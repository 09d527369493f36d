"""What all tests share: an environment without surprises, and marks by folder."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from cluster.connect import SPIN_COUNT
from tests import tiny_loop
from tests.tiny_llama import tiny_llama

if TYPE_CHECKING:
    from tests.submitted_loop import SubmittedLoop

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
os.environ.setdefault("RAY_worker_niceness", "0")  # else other tests, in the process beside, starve the workers
# Jobs and workers that tests start in folders of their own import from here.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
# A first example loads models, and the machine is shared: how long one takes says nothing.
hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.load_profile("shared machine")

_WITHOUT_ENGINES = ("test_serve.py", "test_serve_command.py", "test_page.py", "test_curation.py", "test_lost_node.py")
_LAST = ("test_judges.py", "test_red_team.py", "test_jobs.py", "test_synthesis_and_training.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies under tests/integration and tests/chaos; what takes longest comes first, for several workers."""
    for item in items:
        for name in ("integration", "chaos"):
            if name in item.path.relative_to(Path(__file__).parent).parts:
                item.add_marker(name)
    slow = ("chaos", "integration")
    items.sort(key=lambda i: (i.path.name in _LAST, *(i.get_closest_marker(name) is None for name in slow)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep most tests that start engines with one worker, and the other tests of a file together.

    Engines compute on all cores. The last files are for the worker that is done first, which would be idle.
    """
    from xdist.scheduler import LoadFileScheduling

    class Scheduler(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = str(super()._split_scope(nodeid))
            starts_cluster = {"integration", "chaos"}.intersection(file.split("/"))
            return "engines" if starts_cluster and not file.endswith((*_WITHOUT_ENGINES, *_LAST)) else file

    return Scheduler(config, log)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of the tiny language model."""
    return tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def loop_inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of what tiny runs start from."""
    directory = tmp_path_factory.mktemp("inputs")
    tiny_loop.write_inputs(directory)
    return directory


@pytest.fixture(scope="session")
def submitted_loop(loop_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> "SubmittedLoop":
    """Return a tiny run that was submitted to a cluster, and what was seen of it."""
    from tests.submitted_loop import submitted  # it imports Ray, which reads the environment

    return submitted(loop_inputs, tmp_path_factory.mktemp("submitted") / "cache")


@pytest.fixture(scope="session")
def finished_loop(submitted_loop: "SubmittedLoop") -> Path:
    """Return the directory of a tiny run that nothing disturbed."""
    return submitted_loop.run_dir

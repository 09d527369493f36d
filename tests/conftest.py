"""What all tests share: an environment without surprises, and marks by folder."""

import os
from pathlib import Path

import pytest

from tests import tiny_loop
from tests.tiny_llama import tiny_llama

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Jobs and workers that tests start in folders of their own import from here.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies under tests/integration and tests/chaos."""
    for item in items:
        for name in ("integration", "chaos"):
            if name in item.path.relative_to(Path(__file__).parent).parts:
                item.add_marker(name)


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
def finished_loop(loop_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a tiny run that nothing disturbed."""
    run_dir = tmp_path_factory.mktemp("runs") / "tiny"
    ended = tiny_loop.run(run_dir, loop_inputs)
    assert ended.returncode == 0, ended.stdout
    return run_dir

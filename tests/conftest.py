"""What all tests share: an environment without surprises, and marks by folder."""

import os
from pathlib import Path

import pytest

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

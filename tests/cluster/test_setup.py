"""What `cluster/setup.sh` says and leaves behind when an install fails; installs themselves are tried by hand."""

import os
import shutil
import subprocess
import sys

import pytest

STUB = """#!/bin/sh
[ "$3" = --version ] && exit 0
echo "$*" >> calls
echo "Collecting something"
{last}
"""


@pytest.fixture
def setup(tmp_path):
    """A project with an environment whose pip does what a test says."""
    for name in ("cluster/setup.sh", "requirements.lock", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(name, tmp_path / name)

    def run(last: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
        pip = tmp_path / ".venv/bin/python"
        pip.parent.mkdir(parents=True, exist_ok=True)
        pip.write_text(STUB.format(last=last))
        pip.chmod(0o755)
        return subprocess.run(
            ["cluster/setup.sh"], cwd=tmp_path, env={**os.environ, "PYTHON": python}, capture_output=True, text=True
        )

    return run


@pytest.mark.parametrize(
    ("pip_says", "message"),
    [
        ("ERROR: Max retries exceeded with url: connection refused", "no package index could be reached"),
        ("ERROR: No space left on device", "the install failed"),
    ],
)
def test_a_failed_install_is_told_and_done_again(setup, tmp_path, pip_says, message):
    failed = setup(f'echo "{pip_says}"; exit 1')
    assert failed.returncode == 1 and message in failed.stderr and pip_says in failed.stdout
    done = setup("exit 0")
    assert done.returncode == 0 and "setup: done" in done.stdout
    calls = (tmp_path / "calls").read_text()
    again = setup("exit 1")
    assert again.returncode == 0 and not again.stdout and (tmp_path / "calls").read_text() == calls


def test_a_wrong_python_is_named_before_anything_is_installed(setup, tmp_path):
    other = tmp_path / "python3.9"
    other.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.1"\nexit 1\n')
    other.chmod(0o755)
    wrong = setup("exit 0", python=str(other))
    assert wrong.returncode == 1 and "Python 3.9.1 cannot install the lock" in wrong.stderr
    absent = setup("exit 0", python="python3.99")
    assert absent.returncode == 1 and "no python3.99 found" in absent.stderr
    assert not (tmp_path / "calls").exists()

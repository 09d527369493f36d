"""A cluster that a command starts: it lets in those who have its token, and leaves SIGTERM to the command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_STARTS = """
import json, os, ray
from cluster.connect import connect
from jobs.terminal import orderly_end
with orderly_end(), connect(num_cpus=1):
    print(json.dumps([ray.get_runtime_context().gcs_address, os.environ["RAY_AUTH_TOKEN"]]), flush=True)
    input()
"""
_ENTERS = "import sys, ray; ray.init(address=sys.argv[1], logging_level='ERROR')"


@pytest.mark.long
def test_who_has_no_token_is_not_let_in_and_sigterm_is_an_orderly_end(tmp_path: Path) -> None:
    own = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")} | {"HOME": str(tmp_path)}
    running = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", _STARTS], env=own, **running) as cluster:  # type: ignore[call-overload]
        try:
            address, token = json.loads(cluster.stdout.readline())

            def enters(**auth: str) -> bool:
                command = [sys.executable, "-c", _ENTERS, address]
                return subprocess.run(command, env=own | auth, capture_output=True).returncode == 0

            assert enters(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
            assert not enters(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * len(token))
            assert not enters(RAY_AUTH_MODE="disabled")
            assert not (tmp_path / ".ray").exists()
        finally:
            cluster.terminate()
            printed, _ = cluster.communicate()
    assert cluster.returncode == 143 and "interrupted" in printed

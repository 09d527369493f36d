"""Waiting for what other processes do, and a port for them."""

import socket
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = 300  # seconds until something that must happen counts as never happening


def until(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still not after {seconds} s: {what}"
        time.sleep(0.02)


def until_workers_log(words: str) -> None:
    """Wait until a process of the cluster that this one is connected to has written words into its log."""
    from ray._private.worker import global_worker

    logs = Path(global_worker.node.get_logs_dir_path())
    until(lambda: any(words in log.read_text(errors="ignore") for log in logs.glob("worker-*.err")), words)


def free_port() -> int:
    """Return a port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

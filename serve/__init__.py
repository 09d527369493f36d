"""The moderation service on Ray Serve."""

import os

from serve.haproxy import use_haproxy

# Both are read where Ray Serve is imported.
use_haproxy(os.environ, os.getuid())
# Where HAProxy is not: from Serve's proxy to a replica gRPC is faster than an actor's call.
os.environ.setdefault("RAY_SERVE_USE_GRPC_BY_DEFAULT", "1")

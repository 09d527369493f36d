"""The moderation service on Ray Serve."""

import os

# From Serve's proxy to a replica gRPC is faster than an actor's call. Read where Serve is imported.
os.environ.setdefault("RAY_SERVE_USE_GRPC_BY_DEFAULT", "1")

"""The moderation service on Ray Serve."""

import os

# From Serve's proxy to a replica gRPC takes half the time of an actor's call. Read where Serve is imported.
os.environ.setdefault("RAY_SERVE_USE_GRPC_BY_DEFAULT", "1")

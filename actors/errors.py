"""What ends an attack early, told to whoever runs it, and what Ray raises of actors that died."""

from ray.exceptions import OutOfMemoryError, RayActorError

#: Of an actor that Ray killed for its memory the error can be another one than of others.
DEATHS = (RayActorError, OutOfMemoryError)


class AdversaryError(RuntimeError):
    """Attackers cannot go on; the message says why, and what to do or where to look."""

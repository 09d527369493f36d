"""What ends an attack early, told to whoever runs it."""


class AdversaryError(RuntimeError):
    """Attackers cannot go on; the message says why, and what to do or where to look."""

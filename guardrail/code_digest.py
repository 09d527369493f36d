"""What code wrote a result: a part of the keys by which unfinished work is found again."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from guardrail.text import digest


def code_digest(*packages: Path) -> str:
    """Return a digest of what decides in these packages: their code, the shipped texts, registries and intent model."""
    parts = ("**/*.py", "*.yaml", "seed_data/*", "guard_data/*", "intent_model/*")
    found = (path for package in packages for part in parts for path in package.glob(part))
    return digest(*content_digests(sorted(path for path in found if path.is_file())))


def content_digests(paths: Sequence[Path]) -> list[str]:
    """Return the SHA-256 of each file."""
    digests = []
    for path in paths:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests

"""Verdicts of services, kept on disk: an answer took time, and money, and nobody wants to ask for it twice."""

import json
import logging
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

logger = logging.getLogger(__name__)

VERDICTS = "verdicts"  #: what such a folder is called, or what its name ends with

_LINE = TypeAdapter(tuple[str, bool, dict[str, float]])


class Verdict(NamedTuple):
    """What a service says of a text: its decision, and scores in [0, 1] by label; what has none is not there."""

    flagged: bool
    scores: Mapping[str, float]


class KeptVerdicts:
    """A folder of verdicts, by digests of what was asked: it holds no text.

    Any processes, on any hosts, may share it: each adds to a file of its own, and knows what was there when it opened
    the folder, and what it has added. Threads may share the object.

    Args:
        folder: made with the first verdict.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / f"{uuid.uuid4().hex}.jsonl"
        self._known = dict(_kept(folder))
        self._lock, self._is_told = threading.Lock(), False

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> Verdict | None:
        """Return the verdict on what has this digest; None: there is none."""
        return self._known.get(key)

    def add(self, key: str, verdict: Verdict) -> None:
        """Keep a verdict; what cannot be written (a full disk) is told once, and asked again by the next run."""
        line = json.dumps([key, verdict.flagged, verdict.scores])
        with self._lock:
            self._known[key] = verdict
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with self._file.open("ab", buffering=0) as file:
                    file.write(f"\n{line}".encode())  # a new line first: what came before may have been cut off
            except OSError as error:
                if not self._is_told:
                    logger.warning("verdicts cannot be kept in %s: %s", self._file.parent, error.strerror)
                self._is_told = True


def _kept(folder: Path) -> Iterator[tuple[str, Verdict]]:
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_bytes().splitlines():
            try:
                key, flagged, scores = _LINE.validate_json(line)
            except ValidationError:  # its writer was killed, or the disk full
                continue
            yield key, Verdict(flagged, scores)

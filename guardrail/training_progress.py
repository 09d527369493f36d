"""How far a training is: written down by its first worker, told by whoever started it and waits."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from guardrail.files import write_text

#: Called with the steps that are done, those of the whole training, and the mean loss of a step of this epoch so far.
Tell = Callable[[int, int, float], None]


class TrainingError(RuntimeError):
    """A training that failed; the message says why, and where its state is."""


def write_progress(path: Path, done: int, steps: int, loss: float) -> None:
    """Write down what `Tell` is called with, over what was written before."""
    write_text(path, json.dumps([done, steps, loss]))


@contextmanager
def progress_told(path: Path, tell: Tell | None, seconds: float = 15.0) -> Iterator[None]:
    """Tell within the block what is written to `path`, each thing once and not more often than every `seconds`."""
    if tell is None:
        yield
        return
    ended = threading.Event()

    def follow() -> None:
        told = None
        while not ended.wait(seconds):
            if path.is_file() and (written := path.read_text()) != told:
                tell(*json.loads(written))
                told = written

    follower = threading.Thread(target=follow, name="training progress", daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join()

"""How much work may wait: what could not be answered in time is refused at once, while others are answered.

The pace is measured, so it is right for any model on any machine. Knows nothing of HTTP, Ray or models.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator

_REMEMBERED = 0.2  # weight of the last batch in the pace
_PART = 0.5  # of the deadline that the work before a request may be expected to take: paces vary


class Overloaded(Exception):
    """A request would not be answered in time; `retry_after` is when it may be tried again, in whole seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"try again in {retry_after} s")
        self.retry_after = retry_after


class Admission:
    """Counts work in units (see `serve.app.work_units`): how much waits, and how fast it is done.

    Args:
        deadline: seconds in which a request must be answered.
        clock: tells the seconds.
    """

    def __init__(self, deadline: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.deadline, self._clock = deadline, clock
        self._waiting = 0
        self._pace: float | None = None  # seconds for a unit
        self._begun: float | None = None  # when the batch at work began

    @contextlib.contextmanager
    def admitted(self, units: int) -> Iterator[None]:
        """Count a request's work as waiting until the block ends.

        Raises:
            Overloaded: what waits already takes too long. A request that is alone is never refused.
        """
        wait = self._waiting * (self._pace or 0.0)
        if wait > _PART * self.deadline:
            raise Overloaded(max(1, math.ceil(wait - _PART * self.deadline)))
        self._waiting += units
        try:
            yield
        finally:
            self._waiting -= units

    @contextlib.contextmanager
    def at_work(self, units: int) -> Iterator[None]:
        """Measure the pace by a batch that the block computes."""
        self._begun = begun = self._clock()
        try:
            yield
        finally:
            self._begun = None
            pace = (self._clock() - begun) / units
            self._pace = pace if self._pace is None else (1 - _REMEMBERED) * self._pace + _REMEMBERED * pace

    @property
    def computing(self) -> float:
        """How long the batch at work has been at it, in seconds; 0 where there is none."""
        return 0.0 if self._begun is None else self._clock() - self._begun

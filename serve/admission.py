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


class TooMuch(Exception):
    """A request cannot be answered in time even alone; `share` of it could be, in percent."""

    def __init__(self, share: int) -> None:
        super().__init__(f"{share}% of it could be answered in time")
        self.share = share


class Admission:
    """Counts work in units (see `serve.app.work_units`): how much waits, and how fast it is done.

    Args:
        deadline: seconds in which a request must be answered.
        clock: tells the seconds.
    """

    def __init__(self, deadline: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.deadline, self._clock = deadline, clock
        self._waiting = 0
        self._computed = 0  # of the batch at work, which goes on when those who asked for it have left
        self._pace: float | None = None  # seconds for a unit
        self._begun: float | None = None  # when the batch at work began

    @contextlib.contextmanager
    def admitted(self, units: int) -> Iterator[None]:
        """Count a request's work as waiting until the block ends.

        Raises:
            TooMuch: the request alone takes longer than the deadline, whenever it is asked.
            Overloaded: what waits already takes too long. A request that is alone is never refused for that.
        """
        pace = self._pace or 0.0
        if units * pace > self.deadline:
            raise TooMuch(max(1, int(self.deadline / (units * pace) * 100)))
        wait = max(self._waiting, self._computed) * pace
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
        begun = self._clock()
        self._begun, self._computed = begun, units
        try:
            yield
        finally:
            self._begun, self._computed = None, 0
            pace = (self._clock() - begun) / units
            self._pace = pace if self._pace is None else (1 - _REMEMBERED) * self._pace + _REMEMBERED * pace

    @property
    def computing(self) -> float:
        """How long the batch at work has been at it, in seconds; 0 where there is none."""
        return 0.0 if self._begun is None else self._clock() - self._begun

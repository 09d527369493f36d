"""How much work may wait: what could not be answered in time is refused at once, while others are answered.

The pace is measured, so it is right for any model on any machine. Knows nothing of HTTP, Ray or models.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence

from guardrail.reading import Readable
from serve.keys import Key

_REMEMBERED = 0.2  # weight of the last batch in the pace
_FULL = 16  # units: of a batch with fewer it is not known what it would have cost whatever was in it
_LITTLE = 64  # units: of so few it is tried whether they can be answered in time
_CHARACTERS = 512  # of a unit
_PART = 0.5  # of the deadline that the work before a request may be expected to take: paces vary


def work_units(texts: Sequence[Readable]) -> int:
    """Return how much work texts are, in units: of so many characters, and of one text at least."""
    return sum(max(1, -(-len(str(text)) // _CHARACTERS)) for text in texts)


class Overloaded(Exception):
    """A request would not be answered in time; `retry_after` is when it may be tried again, in whole seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"try again in {retry_after} s")
        self.retry_after = retry_after


class TooMuch(Exception):
    """A request is too large; `share` of it would not be, in percent.

    It could not be answered in time even alone, or has more than `max_tokens` where these are named.
    """

    def __init__(self, share: float, max_tokens: int | None = None) -> None:
        self.share, self.max_tokens = max(1, int(share)), max_tokens
        super().__init__(f"{self.share}% of it would do")


class OverBudget(Exception):
    """A key has spent its tokens; `retry_after` is when it has some again, in whole seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"try again in {retry_after} s")
        self.retry_after = retry_after


class Budgets:
    """How many tokens each key may still have read: a minute's at most, and as many again in each minute.

    What a request costs is known when it has been read: it may spend more than there is, and the next one waits.

    Args:
        clock: tells the seconds.

    Attributes:
        replicas: that serve the same keys, each with an equal part of their tokens.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.replicas = 1
        self._clock = clock
        self._left: dict[str, tuple[float, float]] = {}  # tokens, and when there were so many

    def check(self, key: Key | None) -> None:
        """Raise OverBudget if a key has a limit and no token left."""
        if key is None or key.tokens_per_minute is None:
            return
        per_minute = key.tokens_per_minute / self.replicas
        left = self._now(key.name, per_minute)
        if left <= 0:
            raise OverBudget(max(1, math.ceil((1 - left) * 60 / per_minute)))

    def spend(self, key: Key | None, tokens: int) -> None:
        """Take tokens from a key's, if it has a limit."""
        if key and key.tokens_per_minute:
            left = self._now(key.name, key.tokens_per_minute / self.replicas)
            self._left[key.name] = left - tokens, self._clock()

    def _now(self, name: str, per_minute: float) -> float:
        left, then = self._left.get(name, (per_minute, self._clock()))
        return min(per_minute, left + (self._clock() - then) * per_minute / 60)


class _Pace:
    """How fast work is done that is done one batch at a time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.remembered = 0.0  # seconds for a unit, when it was measured last
        self._measured = 0.0  # when that was
        self.computed = 0  # units of the batch at work, which goes on when those who asked for it have left
        self._begun: float | None = None  # when the batch at work began

    @contextlib.contextmanager
    def at_work(self, units: int, deadline: float) -> Iterator[None]:
        """Measure the pace by a batch that the block computes; one of a few units only bounds it."""
        begun = self._clock()
        self.remembered, self._measured = self.now(deadline), begun  # what was forgotten of it does not come back
        self._begun, self.computed = begun, units
        try:
            yield
            # Not of one that failed: it may have done so at once.
            self._measured = self._clock()
            took = self._measured - begun
            pace = min(max(self.remembered, took / max(units, _FULL)), took / units)
            before = self.remembered
            self.remembered = (1 - _REMEMBERED) * before + _REMEMBERED * pace if before else pace
        finally:
            self._begun, self.computed = None, 0

    def now(self, deadline: float) -> float:
        """Return the pace, at least that of the batch at work.

        It halves with each deadline without a batch: one that refuses all is not measured again.
        """
        if self._begun is not None:
            return max(self.remembered, self.computing / self.computed)
        return self.remembered * 0.5 ** ((self._clock() - self._measured) / deadline)

    @property
    def computing(self) -> float:
        """How long the batch at work has been at it, in seconds; 0 where there is none."""
        return 0.0 if self._begun is None else self._clock() - self._begun


class Admission:
    """Counts work in units (see `work_units`): how much waits, and how fast it is done.

    Args:
        deadline: seconds in which a request must be answered.
        clock: tells the seconds.
        stages: that work goes through one after the other, each at a batch of its own: the slowest sets the pace.
    """

    def __init__(self, deadline: float, clock: Callable[[], float] = time.monotonic, stages: int = 1) -> None:
        self.deadline = deadline
        self._waiting = 0
        self._stages = [_Pace(clock) for _ in range(stages)]

    @contextlib.contextmanager
    def admitted(self, units: int) -> Iterator[None]:
        """Count a request's work as waiting until the block ends.

        Raises:
            TooMuch: the request alone takes longer than the deadline, whenever it is asked.
            Overloaded: what waits already takes too long. A request that is alone is never refused for that.
        """
        # A pace that may be another by now, or is that of a batch that hangs, is no reason to call a little too much.
        alone = units * sum(stage.remembered for stage in self._stages) if units > _LITTLE else 0.0
        if alone > self.deadline:
            raise TooMuch(self.deadline / alone * 100)
        pace = max(stage.now(self.deadline) for stage in self._stages)
        wait = max(self._waiting, sum(stage.computed for stage in self._stages)) * pace
        if wait > _PART * self.deadline:
            raise Overloaded(math.ceil(min(max(1.0, wait - _PART * self.deadline), self.deadline)))
        self._waiting += units
        try:
            yield
        finally:
            self._waiting -= units

    def at_work(self, units: int, stage: int = 0) -> contextlib.AbstractContextManager[None]:
        """Measure the pace of a stage by a batch that the block computes; one of a few units only bounds it."""
        return self._stages[stage].at_work(units, self.deadline)

    @property
    def waiting(self) -> int:
        """The work that waits or is at work, in units."""
        return self._waiting

    @property
    def computing(self) -> float:
        """How long a stage has been at its batch, the longest, in seconds; 0 where none is at one."""
        return max(stage.computing for stage in self._stages)

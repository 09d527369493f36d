"""A shadow guard: judges what the guard in use has judged, and answers nobody. Where the two disagree is counted.

It works when nothing waits for the guard in use, and lets go of texts that it does not get to.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence

from guardrail.guard import Guard, Verdict
from guardrail.reading import Readable
from serve.admission import work_units
from serve.metrics import Metrics

_QUEUED = 256  # units of work
_AT_ONCE = 16  # the same
_LOOK_SECONDS = 0.05  # between two looks whether the guard in use is idle

logger = logging.getLogger("ray.serve")


class Shadow:
    """A guard that judges the same traffic.

    Args:
        guard: the shadow.
        busy: tells whether work waits for the guard in use.
        metrics: of the replica.
    """

    def __init__(self, guard: Guard, busy: Callable[[], bool], metrics: Metrics) -> None:
        self.guard, self._busy, self._metrics = guard, busy, metrics
        self.agreed = self.disagreed = 0
        self._queue: deque[tuple[Readable, bool]] = deque()
        self._queued = 0  # units
        self._task: asyncio.Task[None] | None = None

    def offer(self, texts: Sequence[Readable], verdicts: Sequence[Verdict]) -> None:
        """Take texts and what the guard in use said of them."""
        skipped = 0
        for text, verdict in zip(texts, verdicts, strict=True):
            units = work_units([text])
            if not self._queue or self._queued + units <= _QUEUED:  # one of any length: else long ones never were
                self._queue.append((text, verdict.unsafe))
                self._queued += units
            else:
                skipped += 1
        self._metrics.count("rayguard_shadow_texts", skipped, outcome="skipped")
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._judge())

    def stop(self) -> None:
        """Let go of what waits."""
        if self._task:
            self._task.cancel()

    async def _judge(self) -> None:
        while self._queue:
            if self._busy():
                await asyncio.sleep(_LOOK_SECONDS)
                continue
            asked = self._next()
            try:
                verdicts = await asyncio.to_thread(self.guard.classify, [text for text, _ in asked])
            except Exception as error:  # noqa: BLE001 - nobody waits for its answer
                # Its message may quote a text.
                logger.error("The shadow guard failed: %s.", type(error).__name__)
                self._metrics.count("rayguard_shadow_texts", len(asked), outcome="skipped")
                continue
            disagreed = sum(verdict.unsafe != unsafe for verdict, (_, unsafe) in zip(verdicts, asked, strict=True))
            self.disagreed += disagreed
            self.agreed += len(asked) - disagreed
            self._metrics.count("rayguard_shadow_texts", disagreed, outcome="disagrees")
            self._metrics.count("rayguard_shadow_texts", len(asked) - disagreed, outcome="agrees")

    def _next(self) -> list[tuple[Readable, bool]]:
        """Take texts from the queue: one, or as many as are little work together."""
        asked: list[tuple[Readable, bool]] = []
        left = _AT_ONCE
        while self._queue and (not asked or work_units([self._queue[0][0]]) <= left):
            asked.append(self._queue.popleft())
            units = work_units([asked[-1][0]])
            left, self._queued = left - units, self._queued - units
        return asked

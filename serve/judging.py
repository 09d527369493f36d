"""The way of texts through a replica: admitted, prepared, judged by the guard in use, remembered. Knows no HTTP."""

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence

from guardrail.guard import Guard, Prepared, Verdict
from guardrail.guard_card import GuardCard
from guardrail.reading import Readable
from serve.admission import Admission, Budgets, TooMuch, work_units
from serve.batching import Batcher
from serve.cache import VerdictCache
from serve.config import DEADLINE_SECONDS, MAX_TOKENS
from serve.keys import Key
from serve.metrics import Metrics
from serve.shadow import Shadow

_BATCH_UNITS = 64  # so that a batch is bounded in number and in length at once
_TOKENS = 128  # of a unit of English, about
_PREPARING, _JUDGING = 0, 1  # the stages


@dataclasses.dataclass(frozen=True, eq=False)
class InUse:
    """A guard and the verdicts of it that are remembered."""

    guard: Guard
    cache: VerdictCache


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """A request's texts as the guard in use is to read them."""

    used: InUse
    texts: Sequence[Readable]
    read: Mapping[Readable, Prepared]

    @property
    def units(self) -> int:
        """How much work they are."""
        return work_units(list(self.read))


class Judging:
    """Prepares texts of many requests while the model judges others; what was prepared meanwhile is judged together.

    Args:
        metrics: of the replica.

    Attributes:
        used: the guard in use; None until there is one.
        shadow: what judges the same texts when nothing waits.
        admission: how much may wait.
        budgets: how much each key may have read.
        max_tokens: that a request may have, a fourth of its characters.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.used: InUse | None = None
        self.shadow: Shadow | None = None
        self.admission = Admission(DEADLINE_SECONDS, stages=2)
        self.budgets = Budgets()
        self.max_tokens = MAX_TOKENS
        self._metrics = metrics
        self._prepares = Batcher(self._prepare, work_units, _BATCH_UNITS)
        self._judges = Batcher(self._judge, lambda request: request.units, _BATCH_UNITS)

    def in_use(self) -> InUse:
        """Return the guard in use.

        Raises:
            RuntimeError: there is none.
        """
        if self.used is None:
            raise RuntimeError("no guard: the deployment needs user_config={'guard': DIR}")
        return self.used

    def swap(self, guard: Guard, shadow: Guard | None, cached_texts: int) -> None:
        """Have another guard judge what is prepared from now on, and another shadow, or none, do so after it.

        Args:
            guard: to be in use.
            shadow: is left at its work where it is the one there is.
            cached_texts: how many verdicts of the guard are remembered.
        """
        if self.shadow and self.shadow.guard is not shadow:
            self.shadow.stop()
            self.shadow = None
        if shadow and self.shadow is None:
            self.shadow = Shadow(shadow, lambda: self.admission.waiting > 0, self._metrics)
        self.used = InUse(guard, VerdictCache(cached_texts))

    async def judged(self, texts: Sequence[Readable], key: Key | None) -> tuple[GuardCard, list[Verdict]]:
        """Return the verdicts on the texts of one request and the card of the one guard that gave them all.

        Args:
            texts: of the request.
            key: that pays for them.

        Raises:
            OverBudget: the key has spent its tokens.
            Overloaded, TooMuch: too much is waiting, or asked.
            TimeoutError: the deadline is over.
        """
        tokens = sum(len(str(text)) for text in texts) // 4
        if tokens > self.max_tokens:
            raise TooMuch(100 * self.max_tokens / tokens, self.max_tokens)
        self.budgets.check(key)
        used = self.in_use()
        known = used.cache.get(texts)
        asked = [text for text, verdict in zip(texts, known, strict=True) if verdict is None]
        self._metrics.count("rayguard_cached_texts", len(texts) - len(asked))
        if not asked:
            return used.guard.card, [verdict for verdict in known if verdict]
        # Spent before it is read, put right afterwards: who hangs up, or asks often at once, has it read all the same.
        expected = work_units(asked) * _TOKENS
        self.budgets.spend(key, expected)
        async with asyncio.timeout(self.admission.deadline):
            try:
                by, computed = await self._computed(asked)
                if by is not used and len(asked) < len(texts):  # swapped meanwhile: one guard judges them all
                    by, computed = await self._computed(texts)
                    known = [None] * len(texts)
            except Exception:  # refused, or the model failed
                self.budgets.spend(key, -expected)
                raise
        self.budgets.spend(key, sum(verdict.tokens for verdict in computed) - expected)
        fresh = iter(computed)
        return by.guard.card, [verdict or next(fresh) for verdict in known]

    async def _computed(self, texts: Sequence[Readable]) -> tuple[InUse, list[Verdict]]:
        """Return the verdicts on one request's texts, and who gave them, unless too much is waiting, or asked."""
        units = work_units(texts)
        with self.admission.admitted(units):
            self._metrics.set("rayguard_waiting", self.admission.waiting)
            try:
                return await self._judges.submit(await self._prepares.submit(texts))
            finally:
                if self.admission.waiting == units:  # the last one; others' coming tells of them
                    self._metrics.set("rayguard_waiting", 0)

    async def _prepare(self, requests: Sequence[Sequence[Readable]]) -> list[_Prepared]:
        """Return for each request what the guard in use is to read."""
        used = self.in_use()
        together = list(dict.fromkeys(text for texts in requests for text in texts))
        with self.admission.at_work(work_units(together), _PREPARING):
            read = dict(zip(together, await asyncio.to_thread(used.guard.prepare, together), strict=True))
        return [_Prepared(used, texts, {text: read[text] for text in texts}) for texts in requests]

    async def _judge(self, requests: Sequence[_Prepared]) -> list[tuple[InUse, list[Verdict]]]:
        """Return for each request the verdicts on its texts and the guard that gave them.

        All texts of a request are judged by the guard that was in use when they were prepared.
        """
        found: dict[tuple[InUse, Readable], Verdict] = {}
        with self.admission.at_work(sum(request.units for request in requests), _JUDGING):
            for used in dict.fromkeys(request.used for request in requests):
                read = {t: r for request in requests if request.used is used for t, r in request.read.items()}
                verdicts = await asyncio.to_thread(used.guard.judge, list(read.values()))
                found |= {(used, text): verdict for text, verdict in zip(read, verdicts, strict=True)}
                used.cache.put(list(read), verdicts)
                self._metrics.observe("rayguard_batch_texts", len(read))
                self._metrics.read(verdicts, used.guard.card.thresholds)
                if self.shadow:
                    self.shadow.offer(list(read), verdicts)
        return [(request.used, [found[request.used, text] for text in request.texts]) for request in requests]

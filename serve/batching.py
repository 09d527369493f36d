"""Requests that wait while the model is at work are read together when it is done: nobody is held back for company.

Serve's own `@serve.batch` takes of its queue what it gets within the time a lone request is held back, one by one: with
none, batches are of one; with enough for whole batches, every lone request waits for it.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Computes what is submitted, a batch at a time.

    Args:
        compute: returns the results of a batch, in its order.
        size: of an item.
        most: sum of the sizes of a batch; an item that is larger alone is a batch of its own.
    """

    def __init__(
        self, compute: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]], size: Callable[[Item], int], most: int
    ) -> None:
        self._compute, self._size, self._most = compute, size, most
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Result:
        """Return the result of an item. What is cancelled while it waits is not computed.

        Raises:
            Exception: what `compute` raised on it alone.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while batch := self._next():
            if not await self._settled(batch) and len(batch) > 1:
                for alone in batch:  # one item's fault is not the others'
                    if not alone[1].done():
                        await self._settled([alone])

    async def _settled(self, batch: Sequence[tuple[Item, asyncio.Future[Result]]]) -> bool:
        """Compute a batch and tell those who asked; return False, and tell nobody, where one of several fails."""
        try:
            results = await self._compute([item for item, _ in batch])
            outcomes = list(zip(batch, results, strict=True))
        except Exception as error:  # noqa: BLE001 - it is those who asked that it concerns
            if len(batch) == 1 and not batch[0][1].done():
                batch[0][1].set_exception(error)
            return False
        for (_, future), result in outcomes:
            if not future.done():
                future.set_result(result)
        return True

    def _next(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        left = self._most
        while self._waiting:
            item, future = self._waiting[0]
            if not future.done():
                left -= self._size(item)
                if batch and left < 0:
                    break
                batch.append((item, future))
            self._waiting.popleft()
        return batch

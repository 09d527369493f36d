"""Clients that load a moderation service from one process, and what became of each request.

aiohttp, with bodies encoded beforehand: on a machine of two cores the clients take from the service what they cost, and
httpx costs several times as much.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any

import aiohttp
import numpy as np

# To Ray, before it starts anything: else its workers step back from these clients, as other servers' processes do not.
os.environ.setdefault("RAY_worker_niceness", "0")

FAILED = 0  # in the place of a status: no answer came
OK = 200


@dataclasses.dataclass(frozen=True)
class Answer:
    """What became of a request: HTTP status, and when it was sent and answered [s, monotonic]."""

    status: int
    begun: float
    ended: float

    @property
    def seconds(self) -> float:
        """Return how long it took."""
        return self.ended - self.begun


@contextlib.asynccontextmanager
async def session(deadline: float = 120.0) -> AsyncIterator[aiohttp.ClientSession]:
    """Be a client of any number of connections, each request of which fails after `deadline` seconds."""
    connector = aiohttp.TCPConnector(limit=0)
    headers = {"Content-Type": "application/json"}
    timeout = aiohttp.ClientTimeout(total=deadline)
    async with aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout) as opened:
        yield opened


async def ask(client: aiohttp.ClientSession, url: str, body: bytes) -> Answer:
    """Send a request and read its answer."""
    begun = time.monotonic()
    try:
        async with client.post(url, data=body) as response:
            await response.read()
            status = response.status
    except (aiohttp.ClientError, TimeoutError, OSError):
        status = FAILED
    return Answer(status, begun, time.monotonic())


async def ask_all(url: str, bodies: Iterable[bytes], concurrency: int) -> list[Answer]:
    """Send all requests from `concurrency` clients, each of which sends its next when it has its answer."""
    waiting, answers = iter(bodies), list[Answer]()

    async def one_client() -> None:
        for body in waiting:
            answers.append(await ask(client, url, body))

    async with session() as client:
        await asyncio.gather(*(one_client() for _ in range(concurrency)))
    return answers


@contextlib.asynccontextmanager
async def under_load(url: str, bodies: Iterator[bytes], concurrency: int) -> AsyncIterator[list[Answer]]:
    """Send requests within the block, of endless bodies; what it yields grows by the answers."""
    answers, done = list[Answer](), False

    async def one_client() -> None:
        while not done:
            answers.append(await ask(client, url, next(bodies)))
            if answers[-1].status != OK:
                await asyncio.sleep(0.05)  # failing costs nothing: thousands a second would fail

    async with session() as client, asyncio.TaskGroup() as clients:
        for _ in range(concurrency):
            clients.create_task(one_client())
        try:
            yield answers
        finally:
            done = True


def fresh(texts: Sequence[str], size: int = 1) -> Iterator[bytes]:
    """Return requests of `size` texts without end: the texts over and over, under numbers, so that no cache helps."""
    numbered = (f"{text} {number}" for number, text in enumerate(itertools.cycle(texts)))
    while True:
        yield moderation(list(itertools.islice(numbered, size)))


def moderation(texts: Sequence[str] | str, **more: Any) -> bytes:
    """Return the body of `POST /v1/moderations`; other classification servers' have the same field."""
    return json.dumps({"input": texts, **more}).encode()


def wall_seconds(answers: Sequence[Answer]) -> float:
    """Return how long requests took together.

    Raises:
        ValueError: one of them was not answered, or not with 200.
    """
    others = {each.status for each in answers} - {OK}
    if others:
        raise ValueError(f"the service answered {sorted(others)} ({FAILED}: not at all): what it did is no measurement")
    return max(each.ended for each in answers) - min(each.begun for each in answers)


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return float(np.median(list(values)))

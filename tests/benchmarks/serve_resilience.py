"""What the service does when guards are swapped, clients are too many or hostile, a replica dies, and hours pass.

python -m tests.benchmarks.serve_resilience --guard DIR [--other-guard DIR] [--soak-minutes 20]

Two replicas, as `python -m serve` serves a guard, and one process of clients. Texts: our seeds, joined to lengths from
a sentence to several windows.

- swap: guards are swapped 20 times by a change of `user_config`, under load; requests that fail. Without another guard:
  a copy of the first under another name.
- overload: requests arrive at 5 times the rate that closed-loop clients reach (peak), whether or not earlier ones are
  answered, for twice the deadline. Answers other than 200 and 429 or later than the deadline; 200s a second over peak.
  Behind HAProxy a refusal costs next to nothing; of a replica it costs what an answer costs but for its model.
- fuzz: hostile bodies to every POST route of the OpenAPI schema (`tests/fuzzed_bodies.py`); answers 5xx, or none.
- recovery: a replica's process is killed (SIGKILL) under load; seconds until requests are answered and none fails any
  more, and failed requests: those that it had in hand, and those that were sent after the kill.
- soak: resident memory of the replicas under mild load; mean of the last quarter over that of the second.
"""

import argparse
import asyncio
import contextlib
import functools
import json
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from hypothesis import HealthCheck, Phase, given, settings

from cluster.connect import connect
from guardrail.guard_card import GUARD_FILE, GuardCard
from guardrail.seeds import embedded_seeds
from tests.benchmarks.http_load import FAILED, OK, Answer, ask, fresh, session, under_load
from tests.fuzzed_bodies import Fuzzed, fuzzed_requests
from tests.served_guard import deploy, in_use, served
from tests.waiting import until

SWAPS = 20
OVERLOAD = 5
_REPLICAS = 2
REFUSED = 429
FUZZED = 2_000
CLIENTS = 8
_DEADLINE = 30.0  # seconds, the service's own default, told to it all the same
SERVED = {
    "deadline_seconds": _DEADLINE,
    "num_replicas": _REPLICAS,
    "num_cpus": max(1.0, (os.cpu_count() or 1) / _REPLICAS),
}
_PEAK_SECONDS = 20.0
_RECOVERY_SECONDS = 300.0
_SURE = 10  # answers of one guard in a row: none of the replicas has another
_SETTLED = 50  # answers without a failure between
_SAMPLE_SECONDS = 2.0
_TITLE = "ray::ServeReplica:moderation:Moderator"  # Ray's title of the process


def texts() -> list[str]:
    """Return 512 texts of one to forty seeds."""
    seeds = [record["text"] for record in embedded_seeds()]
    lengths = random.Random(0)
    return [" ".join(lengths.choices(seeds, k=lengths.choice((1, 1, 1, 2, 4, 12, 40)))) for _ in range(512)]


def replicas() -> list[psutil.Process]:
    """Return the replicas' processes, which are descendants of this one, once all are there."""
    found: list[psutil.Process] = []

    def all_there() -> bool:
        found[:] = [each for each in psutil.Process().children(recursive=True) if _title(each).startswith(_TITLE)]
        return len(found) == _REPLICAS

    until(all_there, f"{_REPLICAS} processes titled {_TITLE} under this one (unset RAY_ADDRESS)", _RECOVERY_SECONDS)
    return found


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def failed(answers: Sequence[Answer]) -> list[Answer]:
    """Return the answers that are not 200."""
    return [each for each in answers if each.status != OK]


class Bench:
    """The served guard, and what is measured of it."""

    def __init__(self, guard: Path, other: Path, address: str) -> None:
        self.args = {"guard": str(guard.resolve()), **SERVED}
        self.guards, self.address, self.url = (guard, other), address, f"{address}/v1/moderations"
        self.bodies = fresh(texts())

    async def swaps(self) -> dict[str, Any]:
        """Swap guards under load."""
        async with under_load(self.url, self.bodies, CLIENTS) as answers:
            for number in range(1, SWAPS + 1):
                await asyncio.to_thread(self._swap, self.guards[number % 2])
                await asyncio.to_thread(until, functools.partial(_more, answers, len(answers) + CLIENTS), "answers")
        await asyncio.to_thread(self._swap, self.guards[0])
        return {
            "swap_failed_requests": len(failed(answers)),
            "swap_requests": len(answers),
            "swap_longest_seconds": round(max(each.seconds for each in answers), 2),
        }

    def _swap(self, guard: Path) -> None:
        """Have all replicas take a guard."""
        card = GuardCard.read(guard)

        def swapped() -> bool:
            return all(in_use(self.address) == (card.version, card.digest) for _ in range(_SURE))

        deploy(self.args, guard=str(guard.resolve()))
        until(swapped, "the swap", 300)

    async def overload(self, size: int) -> dict[str, Any]:
        """Send more requests, of `size` texts, than can be answered."""
        bodies = fresh(texts(), size)
        async with under_load(self.url, bodies, max(CLIENTS, 4 * CLIENTS // size)) as answers:
            await asyncio.sleep(_PEAK_SECONDS)
            peak = _rate(answers, _PEAK_SECONDS / 2)
        if not {each.status for each in answers} <= {OK, REFUSED}:
            raise RuntimeError(f"the service fails without overload: {_statuses(answers)}")
        arrivals = OVERLOAD * peak
        begun, sent, got = time.monotonic(), 0, list[Answer]()
        async with session(deadline=2 * _DEADLINE) as client, asyncio.TaskGroup() as requests:

            async def one(body: bytes) -> None:
                got.append(await ask(client, self.url, body))

            while (passed := time.monotonic() - begun) < 2 * _DEADLINE:
                while sent < passed * arrivals:
                    requests.create_task(one(next(bodies)))
                    sent += 1
                await asyncio.sleep(0.01)
        # Before the queue is full nothing is refused; how the service does when it is, shows in the second half.
        half = [each for each in got if begun + _DEADLINE <= each.ended < begun + 2 * _DEADLINE]
        throughput = sum(each.status == OK for each in half) / _DEADLINE
        others = [each for each in got if each.status not in (OK, REFUSED) or each.seconds > _DEADLINE]
        return {
            "overload_other_than_200_429": len(others),
            "overload_throughput_vs_peak": round(throughput / peak, 4),
            "overload_statuses": _statuses(got),
            "overload_longest_seconds": round(max(each.seconds for each in got), 2),
            "peak_requests_per_second": round(peak, 1),
            "offered_requests_per_second": round(sent / (2 * _DEADLINE), 1),
        }

    async def fuzz(self) -> dict[str, Any]:
        """Send hostile bodies, one after the other."""
        statuses = Counter[int]()
        with httpx.Client(base_url=self.address, timeout=2 * _DEADLINE) as client:
            openapi = client.get("/openapi.json").raise_for_status().json()

            # Other bodies in each run, unlike tests/integration/test_serve.py.
            @settings(
                max_examples=FUZZED,
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(fuzzed_requests(openapi))
            def send(request: Fuzzed) -> None:
                headers = {"Content-Type": request.content_type}
                try:
                    status = client.post(request.path, content=request.content, headers=headers).status_code
                except httpx.TransportError:
                    status = FAILED
                statuses[status] += 1
                if _is_fault(status):
                    print(f"answered {status}: {str(request)[:400]}", flush=True)

            send()
        faults = sum(count for status, count in statuses.items() if _is_fault(status))
        return {"fuzz_5xx": faults, "fuzz_statuses": dict(sorted(statuses.items()))}

    async def recovery(self) -> dict[str, Any]:
        """Kill the replica under load."""
        async with under_load(self.url, self.bodies, CLIENTS) as answers:
            await asyncio.to_thread(until, lambda: len(answers) > _SETTLED, "answers", _RECOVERY_SECONDS)
            replicas()[0].kill()
            killed = time.monotonic()

            def recovered() -> bool:
                return len(answers) > _SETTLED and all(e.status == OK and e.begun > killed for e in answers[-_SETTLED:])

            await asyncio.to_thread(until, recovered, "answers without failures", _RECOVERY_SECONDS)
        later = [each for each in answers if each.begun > killed]
        first = min(each.ended for each in later if each.status == OK)
        return {
            "recovery_seconds": round(max([first, *(each.ended for each in failed(later))]) - killed, 1),
            "recovery_failed_requests": len(failed(later)),
            "recovery_failed_in_flight": len(failed(answers)) - len(failed(later)),
            "recovery_statuses": _statuses(failed(answers)),
        }

    async def soak(self, minutes: float) -> dict[str, Any]:
        """Watch the replicas' memory."""
        processes, sizes, end = replicas(), list[int](), time.monotonic() + 60 * minutes
        async with under_load(self.url, self.bodies, 2) as answers:
            while time.monotonic() < end:
                sizes.append(sum(process.memory_info().rss for process in processes))
                await asyncio.sleep(_SAMPLE_SECONDS)
        quarters = [float(np.mean(part)) for part in np.array_split(sizes, 4)]
        return {
            "soak_memory_growth": round(quarters[3] / quarters[1] - 1, 4),
            "soak_mib_by_quarter": [round(each / 2**20, 1) for each in quarters],
            "soak_requests": len(answers),
            "soak_failed_requests": len(failed(answers)),
        }


def _more(answers: Sequence[Answer], than: int) -> bool:
    return len(answers) > than


def _rate(answers: Sequence[Answer], seconds: float) -> float:
    """Return the 200s a second, over the last `seconds`."""
    since = time.monotonic() - seconds
    return sum(each.ended >= since and each.status == OK for each in answers) / seconds


def _statuses(answers: Sequence[Answer]) -> dict[int, int]:
    return dict(sorted(Counter(each.status for each in answers).items()))


def _is_fault(status: int) -> bool:
    return status == FAILED or status >= 500


def copy_of(guard: Path, directory: Path) -> Path:
    """Copy a guard under another name."""
    shutil.copytree(guard, directory)
    card = json.loads((guard / GUARD_FILE).read_text())
    (directory / GUARD_FILE).write_text(json.dumps({**card, "version": f"{card['version']}-copy"}))
    return directory


def main() -> None:
    """Run all parts, print the table and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guard", type=Path, required=True)
    parser.add_argument("--other-guard", type=Path, help="to swap with")
    parser.add_argument("--overload-texts", type=int, default=1, help="in a request of the overload (%(default)s)")
    parser.add_argument("--soak-minutes", type=float, default=20, help="0 leaves the soak out (%(default)s)")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"soak_memory_growth": None}
    with tempfile.TemporaryDirectory() as folder, connect():
        other = arguments.other_guard or copy_of(arguments.guard, Path(folder, "other"))
        with served(arguments.guard, **SERVED) as address:
            bench = Bench(arguments.guard, other, address)
            parts: list[Callable[[], Coroutine[Any, Any, dict[str, Any]]]] = [
                bench.swaps,
                functools.partial(bench.overload, arguments.overload_texts),
                bench.fuzz,
                bench.recovery,
            ]
            if arguments.soak_minutes:
                parts.append(functools.partial(bench.soak, arguments.soak_minutes))
            for part in parts:
                found = asyncio.run(part())
                for name, value in found.items():
                    print(f"{name:30} {value}", flush=True)
                figures |= found
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

"""`python -m serve`, as people start it: the newest promoted guard, the next ones in its place, and what it refuses."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from guardrail.guard_card import GUARD_FILE, GuardCard
from guardrail.promotion import main as promotion
from guardrail.promotion import promote
from tests.served_guard import in_use, load
from tests.tiny_guard import tiny_guard
from tests.waiting import free_port, until

ROOT = Path(__file__).parents[2]


def served_digest(address: str) -> str | None:
    return (in_use(address) or (None, None))[1]


def haproxies(parent: int) -> tuple[set[str], list[str]]:
    """Return the addresses that a process's HAProxies listen on or talk from, and their configurations."""
    addresses, configured = set[str](), list[str]()
    for child in psutil.Process(parent).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # one that a reload has replaced
            if child.name() == "haproxy":
                addresses |= {each.laddr.ip for each in child.net_connections("tcp4")}
                configured.append(Path(child.cmdline()[child.cmdline().index("-f") + 1]).read_text())
    return addresses, configured


def test_command_serves_the_newest_promoted_guard_and_the_next_until_sigterm(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    newest = tiny_guard(runs / "a" / "rounds" / "01" / "guard", seed=2)
    (runs / "a" / "guard").symlink_to("rounds/01/guard")  # as the loop promotes
    old = tiny_guard(runs / "b" / "guard", seed=1)
    os.utime(old / GUARD_FILE, (0, 0))
    (runs / "unfinished").mkdir()
    port = free_port()
    command = [sys.executable, "-m", "serve", "--runs-dir", str(runs), "--port", str(port)]
    log = tmp_path / "stderr"
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log.open("w"), text=True)
    try:
        url = f"http://127.0.0.1:{port}"
        until(lambda: process.poll() is not None or served_digest(url) is not None, "the command serves")
        assert served_digest(url) == GuardCard.read(newest).digest
        # Not its statistics and metrics either, which Ray Serve has listen everywhere.
        assert haproxies(process.pid)[0] == {"127.0.0.1"}

        def refuses() -> bool:  # but between a new configuration and the reload
            _, configured = haproxies(process.pid)
            return bool(configured) and all("maxconn 256" in each and "status 429" in each for each in configured)

        until(refuses, "HAProxy is told to refuse what is too much")

        def link_to(number: str) -> None:
            promote(runs / "a" / "guard", runs / "a" / "rounds" / number / "guard")

        bad = tiny_guard(runs / "a" / "rounds" / "02" / "guard", seed=4)
        (bad / "model.safetensors").write_bytes(b"not weights")
        link_to("02")
        until(lambda: "is not taken" in log.read_text(), "the damaged guard is refused")
        assert served_digest(url) == GuardCard.read(newest).digest
        better = tiny_guard(runs / "a" / "rounds" / "03" / "guard", seed=3)

        async def promote_under_load() -> None:
            async with load(url, "How do I bake bread?", []):
                link_to("03")
                await asyncio.to_thread(
                    until, lambda: served_digest(url) == GuardCard.read(better).digest, "the promoted guard is served"
                )

        asyncio.run(promote_under_load())
        assert promotion([str(runs / "a" / "guard"), str(newest)]) == 0
        until(lambda: served_digest(url) == GuardCard.read(newest).digest, "the guard before is back")
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    assert f"curl {url}/v1/moderations" in output


def test_command_without_a_guard_says_what_to_do(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serve", "--runs-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "run make loop first" in done.stderr and "Traceback" not in done.stderr

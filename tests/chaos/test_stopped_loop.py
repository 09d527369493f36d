"""The loop is killed while it attacks and while it trains; the same command goes on, and ends like one never killed.

That synthesis and curation go on where they were is tested with them.
"""

import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from tests import tiny_loop
from tests.waiting import PATIENCE, until


def lines_of(process: subprocess.Popen[str]) -> Callable[[str], None]:
    """Return a function that reads what the process prints until a line holds a text."""

    def read_to(text: str) -> None:
        for line in process.stdout:
            if text in line:
                return
        raise AssertionError(f"the loop ended before it printed {text!r}")

    return read_to


def in_the_middle(phase: str, folder: Path, process: subprocess.Popen[str], read_to: Callable[[str], None]) -> None:
    """Wait until a phase is halfway."""
    if phase == "train":
        until(lambda: list(folder.glob(".guard.training/*")), "training begins")
    elif phase == "attack":
        read_to("1 of 2: ")


def phases(run_dir: Path) -> dict[str, dict]:
    path = run_dir / "manifest.json"
    return json.loads(path.read_text())["phases"] if path.exists() else {}


def kill_in(key: str, command: list[str], run_dir: Path) -> None:
    """Start the loop, wait until it is in a phase (ROUND/NAME), and kill it."""
    index, phase = key.split("/")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        read_to = lines_of(process)
        read_to(f"{phase:<12} begins")
        in_the_middle(phase, run_dir / "rounds" / index, process, read_to)
        # Ray's two agents look for the rest of their node once a minute, and hold nothing of the run.
        children = psutil.Process(process.pid).children(recursive=True)
        workers = [child for child in children if not tiny_loop.title(child).endswith("Agent")]
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    _, left = psutil.wait_procs(workers, timeout=PATIENCE)
    assert not left, f"processes of a killed run live on: {left}"


@pytest.mark.timeout(1200)  # three starts of the loop
def test_a_round_that_is_killed_twice_ends_as_one_that_was_not(finished_loop, loop_inputs, tmp_path):
    run_dir = tiny_loop.copied_up_to("01/attack", finished_loop, tmp_path / "tiny")
    for made in ("rounds/01", "attacker"):
        shutil.rmtree(run_dir / made)
    keys = list(phases(finished_loop))
    for key in ("01/attack", "01/train"):
        before = phases(run_dir)
        kill_in(key, tiny_loop.command(run_dir, loop_inputs), run_dir)
        after = phases(run_dir)
        assert {name: after[name] for name in before} == before  # what was done was not done again
        # The phase killed is not there, unless it outran the signal.
        assert list(after) in (keys[: keys.index(key)], keys[: keys.index(key) + 1])
    ended = tiny_loop.run(run_dir, loop_inputs)
    assert ended.returncode == 0, ended.stdout
    for name in ("attacks", "curated"):
        ours, theirs = (
            pq.read_table(folder / "rounds" / "01" / f"{name}.parquet") for folder in (run_dir, finished_loop)
        )
        assert ours.select(["id", "text", "unsafe"]).equals(theirs.select(["id", "text", "unsafe"])), name
    reports = [json.loads((folder / "report.json").read_text()) for folder in (run_dir, finished_loop)]
    assert reports[0]["hardening"] == reports[1]["hardening"]
    assert [r["guard"] for r in reports[0]["rounds"]] == [r["guard"] for r in reports[1]["rounds"]]

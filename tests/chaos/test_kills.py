"""The driver of the loop is killed in every long phase; the same command goes on, and ends like one never killed."""

import json
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


LONG = ("synthesize", "curate", "train", "attack")  # the others take a second


def in_the_middle(phase: str, folder: Path, process: subprocess.Popen[str], read_to: Callable[[str], None]) -> None:
    """Wait until a long phase is halfway."""
    if phase == "synthesize":
        until(lambda: any("Synthesizer" in title for title in tiny_loop.titles_below(process.pid)), "an engine starts")
    elif phase == "curate":
        until(lambda: list(folder.glob("curation/stages/03-*")), "the third stage begins")
    elif phase == "train":
        until(lambda: list(folder.glob(".guard.training/*")), "training begins")
    elif phase == "attack":
        read_to("1 of 2: ")


def phases(run_dir: Path) -> dict[str, dict]:
    path = run_dir / "manifest.json"
    return json.loads(path.read_text())["phases"] if path.exists() else {}


def kill_in(index: int, phase: str, command: list[str], run_dir: Path) -> None:
    """Start the loop, wait until it is in a phase, and kill it."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        read_to = lines_of(process)
        read_to(f"{phase:<12} begins")
        in_the_middle(phase, run_dir / "rounds" / f"{index:02d}", process, read_to)
        # Ray's two agents look for the rest of their node once a minute, and hold nothing of the run.
        children = psutil.Process(process.pid).children(recursive=True)
        workers = [child for child in children if not tiny_loop.title(child).endswith("Agent")]
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    _, left = psutil.wait_procs(workers, timeout=PATIENCE)
    assert not left, f"processes of a killed run live on: {left}"


@pytest.mark.timeout(1800)  # six starts of the loop
def test_a_run_killed_in_every_long_phase_ends_as_one_that_was_not(finished_loop, loop_inputs, tmp_path):
    run_dir = tmp_path / finished_loop.name
    command = tiny_loop.command(run_dir, loop_inputs)
    keys = list(phases(finished_loop))
    last = {key.split("/")[1]: place for place, key in enumerate(keys)}  # of what both rounds do, in the second
    killed = 0
    for phase, place in sorted(((phase, last[phase]) for phase in LONG), key=lambda each: each[1]):
        before = phases(run_dir)
        # The phase killed last is not there, unless it outran the signal.
        assert list(before) in (keys[:killed], keys[: killed + 1])
        kill_in(int(keys[place].split("/")[0]), phase, command, run_dir)
        killed = place
        after = phases(run_dir)
        assert {name: after[name] for name in before} == before  # what was done was not done again
    ended = tiny_loop.run(run_dir, loop_inputs)
    assert ended.returncode == 0, ended.stdout
    for name in ("rounds/00/synthetic", "rounds/00/curated", "rounds/01/attacks", "rounds/01/curated"):
        ours, theirs = (pq.read_table(folder / f"{name}.parquet") for folder in (run_dir, finished_loop))
        assert ours.select(["id", "text", "unsafe"]).equals(theirs.select(["id", "text", "unsafe"])), name
    reports = [json.loads((folder / "report.json").read_text()) for folder in (run_dir, finished_loop)]
    assert reports[0]["hardening"] == reports[1]["hardening"]
    assert [r["guard"] for r in reports[0]["rounds"]] == [r["guard"] for r in reports[1]["rounds"]]

"""The loop is killed while it attacks, and interrupted while it trains; the same command goes on, and ends like one
that nobody stopped.

That synthesis and curation go on where they were is tested with them.
"""

import json
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from tests import tiny_loop
from tests.waiting import PATIENCE, until


def started(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def read_to(process: subprocess.Popen[str], text: str) -> None:
    """Read what a process prints until a line holds a text."""
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"the loop ended before it printed {text!r}")


def phases(run_dir: Path) -> dict[str, dict]:
    return json.loads((run_dir / "manifest.json").read_text())["phases"]


def killed_as_it_attacks(process: subprocess.Popen[str]) -> None:
    """Kill the loop after an iteration, and see that nothing of it lives on."""
    try:
        read_to(process, f"{'attack':<12} begins")
        read_to(process, "1 of 2: ")
        # Ray's two agents look for the rest of their node once a minute, and hold nothing of the run.
        children = psutil.Process(process.pid).children(recursive=True)
        workers = [child for child in children if not tiny_loop.title(child).endswith("Agent")]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    _, left = psutil.wait_procs(workers, timeout=PATIENCE)
    assert not left, f"processes of a killed run live on: {left}"


def interrupted_as_it_trains(process: subprocess.Popen[str], run_dir: Path) -> None:
    """Send the loop Ctrl-C while Ray Train, which would handle that itself, is at work; it says how to go on."""
    try:
        read_to(process, f"{'train':<12} begins")
        sign = "TrainController"
        until(lambda: any(sign in title for title in tiny_loop.titles_below(process.pid)), f"{sign} is there")
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 130, printed
    assert f"interrupted; the same command goes on in {run_dir}" in " ".join(printed.split())
    assert "Traceback" not in printed


@pytest.mark.long  # three starts of the loop
@pytest.mark.timeout(3600)
def test_a_round_that_is_killed_and_interrupted_ends_as_one_that_was_not(finished_loop, loop_inputs, tmp_path):
    run_dir = tiny_loop.copied_up_to("01/attack", finished_loop, tmp_path / "tiny")
    for made in ("rounds/01", "attacker"):
        shutil.rmtree(run_dir / made)
    command = tiny_loop.command(run_dir, loop_inputs)
    whole = phases(finished_loop)
    before = phases(run_dir)

    killed_as_it_attacks(started(command))
    keys = list(whole)
    # The phase stopped is not there, unless it outran the signal.
    assert list(phases(run_dir)) in (keys[: keys.index("01/attack")], keys[: keys.index("01/attack") + 1])
    interrupted_as_it_trains(started(command), run_dir)
    after = phases(run_dir)
    assert {name: after[name] for name in before} == before  # what was done was not done again
    assert list(after) in (keys[: keys.index("01/train")], keys[: keys.index("01/train") + 1])

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

"""`jobs/curate.py` is killed between two stages; the same command goes on, and ends like one that nobody killed."""

import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from guardrail.records import write_records
from guardrail.seeds import embedded_seeds
from tests import tiny_loop
from tests.waiting import PATIENCE, until

ROOT = Path(__file__).parents[2]


def command(records: Path, output: Path) -> list[str]:
    return [sys.executable, str(ROOT / "jobs" / "curate.py"), "--input", str(records), "--output", str(output)]


@pytest.mark.long
def test_a_killed_curation_goes_on_and_ends_as_one_that_was_not(tmp_path):
    records, killed, whole = tmp_path / "records.parquet", tmp_path / "killed", tmp_path / "whole"
    seeds = embedded_seeds()
    random.Random(0).shuffle(seeds)
    # Copies in capitals: something to drop.
    write_records([*seeds, *({**seed, "text": seed["text"].upper()} for seed in seeds[:200])], records)
    process = subprocess.Popen(command(records, killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ended = killed / "stages" / "02-exact" / "manifest.json"
    try:
        until(lambda: ended.exists() or process.poll() is not None, "two stages have ended")
        # Ray's two agents look for the rest of their node once a minute, and hold nothing of the run.
        children = psutil.Process(process.pid).children(recursive=True)
        workers = [child for child in children if not tiny_loop.title(child).endswith("Agent")]
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not psutil.wait_procs(workers, timeout=PATIENCE)[1]
    assert ended.exists() and not (killed / "kept.parquet").exists()
    manifests = {path: path.stat().st_mtime_ns for path in killed.glob("stages/*/manifest.json")}
    started = killed / "stages" / "06-quality"
    assert not started.exists()
    with (tmp_path / "said").open("w") as said:
        again = subprocess.Popen(command(records, killed), stdout=subprocess.DEVNULL, stderr=said)
        # Stages are gone at the end: this one comes behind all that had ended, and not last.
        until(lambda: started.exists() or again.poll() is not None, "it goes on")
        assert {path: path.stat().st_mtime_ns for path in manifests} == manifests  # nothing of them was written again
        assert again.wait(PATIENCE) == 0, (tmp_path / "said").read_text()
    told = re.findall(r"^(\w+): [\d,]+ of [\d,]+ kept(, as it was before)?$", (tmp_path / "said").read_text(), re.M)
    assert [stage for stage, _ in told][:3] == ["canonical", "exact", "near"]
    ended_before = {path.parent.name.partition("-")[2] for path in manifests} - {"input", "facts"}
    assert {stage for stage, as_before in told if as_before} == ended_before
    subprocess.run(command(records, whole), check=True, capture_output=True)
    for name in ("kept.parquet", "ledger.parquet", "set_aside.parquet"):
        assert pq.read_table(killed / name).equals(pq.read_table(whole / name))
    assert pq.read_metadata(killed / "ledger.parquet").num_rows >= 200
    assert not (killed / "stages").exists()

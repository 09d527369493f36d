"""The loop as a submitted job on a running cluster, and what the dashboard shows of it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import pytest
from ray.util.state import list_actors, list_jobs

from guardrail.models import cache_dir
from tests.integration.test_serve import free_port, until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cluster():
    """A cluster as `ray start --head` makes it; yields the dashboard's URL, the metrics' URL and its cache folder."""
    temp = tempfile.mkdtemp(prefix="rg-", dir="/tmp")  # sockets lie in it: pytest's folders have too long names
    port, dashboard, metrics = free_port(), free_port(), free_port()
    # `python` in the entry point is the one that runs these tests.
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    cache = Path(temp) / "cache"
    environment["RAYGUARD_CACHE"] = str(cache)
    cache.mkdir()
    (cache / "models").symlink_to(cache_dir() / "models")
    head = subprocess.Popen(
        [
            *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=2"),
            *(f"--port={port}", f"--dashboard-port={dashboard}", f"--metrics-export-port={metrics}"),
            *(f"--temp-dir={temp}", "--disable-usage-stats"),
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    urls = f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{metrics}"
    try:
        until(lambda: answers(f"{urls[0]}/api/version") and answers(urls[1]), "the dashboard answers", seconds=120)
        yield *urls, cache
    finally:
        head.send_signal(signal.SIGTERM)
        head.wait(timeout=60)
        shutil.rmtree(temp, ignore_errors=True)


def answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False


def test_a_submitted_loop_runs_and_shows_in_the_dashboard(cluster):
    dashboard, metrics, cache = cluster
    run_dir = cache / "runs" / "smoke"
    submission = subprocess.Popen(
        [
            *(str(Path(sys.executable).with_name("ray")), "job", "submit", f"--address={dashboard}"),
            *("--submission-id=rayguard-loop", "--working-dir=.", "--", "python", "jobs/adversarial_loop.py"),
            *("--config", "jobs/configs/smoke.yaml"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    actors, gauges = set(), set()
    while submission.poll() is None:  # whatever is alive only for a while is seen in passing
        for actor in list_actors(address=dashboard, detail=True):
            actors |= {actor.name, actor.repr_name, actor.class_name}
        gauges |= set(re.findall(r"^ray_(rayguard_\w+)", httpx.get(metrics).text, re.MULTILINE))
        time.sleep(1)
    printed = submission.stdout.read()
    assert submission.returncode == 0, printed
    assert f"guard:  {run_dir}/guard" in printed and "rounds so far" in printed

    report = json.loads((run_dir / "report.json").read_text())
    assert report["rounds"][1]["attacks"]["attempts"] == 12
    (job,) = [job for job in list_jobs(address=dashboard) if job.submission_id == "rayguard-loop"]
    assert job.status == "SUCCEEDED" and "jobs/adversarial_loop.py" in job.entrypoint
    named = {name for name in actors if name}
    assert "attacker-1" in named and any(name.startswith("scorer-") for name in named), named
    assert "MapWorker(MapBatches(Synthesizer))" in named and any("TrainWorker" in name for name in named), named
    assert {"rayguard_attack_iteration", "rayguard_reward_part", "rayguard_round", "rayguard_guard_f1"} <= gauges

"""The tiny loop as a submitted job on a running cluster, and what the dashboard showed of it meanwhile."""

import contextlib
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
from ray.util.state import list_actors, list_jobs
from ray.util.state.exception import RayStateApiException

from guardrail.models import cache_dir
from tests import tiny_loop
from tests.waiting import free_port, until

SUBMISSION = "rayguard-loop"


@dataclasses.dataclass(frozen=True)
class SubmittedLoop:
    """A submission that has ended.

    Attributes:
        run_dir: of the loop.
        printed: what `ray job submit` printed.
        status, entrypoint: of the job, as the dashboard has them.
        actors: names that actors were seen by.
        gauges: names of our metrics that were seen.
    """

    run_dir: Path
    printed: str
    status: str
    entrypoint: str
    actors: set[str]
    gauges: set[str]


def submitted(inputs: Path, cache: Path) -> SubmittedLoop:
    """Submit a tiny loop and return when it has ended.

    Args:
        inputs: what `tiny_loop.write_inputs` wrote.
        cache: the job's cache folder, where its run directory is.
    """
    cache.mkdir()
    (cache / "models").symlink_to(cache_dir() / "models")
    with running_cluster(cache) as (dashboard, metrics):
        ray = str(Path(sys.executable).with_name("ray"))
        job = ["python", "jobs/adversarial_loop.py", *tiny_loop.settings(Path("runs/tiny"), inputs)]
        submission = subprocess.Popen(
            [
                *(ray, "job", "submit", f"--address={dashboard}", f"--submission-id={SUBMISSION}", "--working-dir=."),
                *("--", *job),
            ],
            cwd=tiny_loop.ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        actors, gauges = set[str](), set[str]()
        while submission.poll() is None:  # whatever is alive only for a while is seen in passing
            with contextlib.suppress(RayStateApiException):  # a busy machine's dashboard answers the next time
                for actor in list_actors(address=dashboard, detail=True):
                    actors |= {actor.name, actor.repr_name, actor.class_name}
            gauges |= set(re.findall(r"^ray_(rayguard_\w+)", httpx.get(metrics).text, re.MULTILINE))
            time.sleep(1)
        assert submission.stdout is not None
        printed = submission.stdout.read()
        assert submission.returncode == 0, printed
        (of_job,) = [each for each in list_jobs(address=dashboard) if each.submission_id == SUBMISSION]
    return SubmittedLoop(
        cache / "runs" / "tiny", printed, of_job.status, of_job.entrypoint, {name for name in actors if name}, gauges
    )


@contextlib.contextmanager
def running_cluster(cache: Path) -> Iterator[tuple[str, str]]:
    """Start a cluster as `ray start --head` makes it; yields the dashboard's URL and the metrics' URL."""
    temp = tempfile.mkdtemp(prefix="rg-", dir="/tmp")  # sockets lie in it: pytest's folders have too long names
    port, dashboard, metrics, agent = (free_port() for _ in range(4))
    # `python` in the entry point is the one that runs these tests.
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment["RAYGUARD_CACHE"] = str(cache)
    head = subprocess.Popen(
        [
            *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=2"),
            *(f"--port={port}", f"--dashboard-port={dashboard}", f"--metrics-export-port={metrics}"),
            # Jobs are started by an agent, whose usual port the cluster of another test may have.
            *(f"--dashboard-agent-listen-port={agent}", f"--temp-dir={temp}", "--disable-usage-stats"),
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    urls = f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{metrics}"
    awaited = f"{urls[0]}/api/version", urls[1], f"http://127.0.0.1:{agent}/api/local_raylet_healthz"
    try:
        until(lambda: all(map(_answers, awaited)), "dashboard and agent answer")
        yield urls
    finally:
        # SIGTERM would have it wait half a minute for a node to drain that does nothing.
        processes = [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait()
        shutil.rmtree(temp, ignore_errors=True)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False

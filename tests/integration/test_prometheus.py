"""What a Prometheus reads of the loop's figures, from the page that Ray has for it."""

import subprocess
import sys

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.observability import METRICS
from tests.waiting import free_port, until

_DRIVER = """
import sys, ray
from cluster.observability import record_iteration
from tests.cluster.test_observability import Board, iteration
ray.init(address="local", num_cpus=1, include_dashboard=False, _metrics_export_port=int(sys.argv[1]))
record_iteration("tiny", iteration(attempts=8, valid=4, successes=1, tokens=40, rejected={"drift": 3}), 1, Board())
sys.stdin.read()
"""


def scraped(port: int) -> dict[tuple[str, ...], float]:
    """Return our metrics, by name and tags, of the page on a port; none where there is no page yet."""
    try:
        page = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    except httpx.TransportError:
        return {}
    samples = (sample for family in text_string_to_metric_families(page) for sample in family.samples)
    return {
        (name, *(sample.labels[tag] for tag in METRICS[name][1])): sample.value
        for sample in samples
        if (name := sample.name.removeprefix("ray_")) in METRICS
    }


@pytest.mark.long
def test_an_iterations_figures_come_with_their_values_and_tags() -> None:
    expected = {
        ("rayguard_iteration_yield", "tiny"): 1 / 8,
        ("rayguard_iteration_success_rate", "tiny"): 1 / 4,
        ("rayguard_iteration_unique_clusters", "tiny"): 2.0,
        ("rayguard_archive_coverage", "tiny"): 0.5,
        ("rayguard_gate_rejections", "tiny", "drift"): 3.0,
        ("rayguard_learner", "tiny", "kl"): 0.1,
        ("rayguard_tokens_per_second", "tiny", "generate"): 20.0,
        ("rayguard_tokens_per_second", "tiny", "update"): 10.0,
    }
    port = free_port()
    # A process of its own, as the loop's: Ray's metrics outlive a cluster in the process that had it.
    with subprocess.Popen([sys.executable, "-c", _DRIVER, str(port)], stdin=subprocess.PIPE) as driver:

        def arrived() -> bool:
            assert driver.poll() is None
            return expected.items() <= scraped(port).items()

        until(arrived, "all figures are there")
    assert driver.returncode == 0

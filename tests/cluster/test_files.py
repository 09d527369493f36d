"""What is shipped for clusters holds together: files parse, and names in them are names in the code."""

import importlib
import json
import re
from pathlib import Path

import pytest
import yaml

from cluster.observability import METRICS

CLUSTER = Path("cluster")


@pytest.mark.parametrize("path", sorted(CLUSTER.rglob("*.y*ml")), ids=str)
def test_yaml_parses(path):
    assert list(yaml.safe_load_all(path.read_text()))


def test_every_metric_is_on_the_dashboard_and_every_panel_has_a_metric():
    dashboard = (CLUSTER / "grafana" / "rayguard.json").read_text()
    named = set(re.findall(r"ray_(rayguard_\w+)", dashboard))
    assert named == set(METRICS)
    assert all(panel["targets"] for panel in json.loads(dashboard)["panels"])


def test_the_service_and_the_job_name_what_exists():
    service = yaml.safe_load((CLUSTER / "kuberay" / "rayservice.yaml").read_text())
    application = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]
    module, name = application["import_path"].split(":")
    assert callable(getattr(importlib.import_module(module), name))
    job = yaml.safe_load((CLUSTER / "kuberay" / "rayjob.yaml").read_text())
    for word in job["spec"]["entrypoint"].split():
        assert not word.startswith("jobs/") or Path(word).exists()


def test_all_cluster_files_ask_for_tokens():
    for name in ("kuberay/rayjob.yaml", "kuberay/rayservice.yaml", "ray-cluster.yaml"):
        assert re.search(r"mode: token|RAY_AUTH_MODE=token", (CLUSTER / name).read_text()), name

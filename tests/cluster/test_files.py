"""What is shipped for clusters holds together: files parse, and names in them are names in the code."""

import importlib
import json
import re
from pathlib import Path

import pytest
import yaml

from cluster.observability import METRICS
from cluster.resources import plan
from jobs.settings import LoopSettings
from serve.config import ModeratorConfig
from serve.metrics import COUNTERS, GAUGES, HISTOGRAMS

CLUSTER = Path("cluster")


@pytest.mark.parametrize("path", sorted(CLUSTER.rglob("*.y*ml")), ids=str)
def test_yaml_parses(path):
    assert list(yaml.safe_load_all(path.read_text()))


def test_every_metric_is_on_the_dashboard_and_every_panel_has_a_metric():
    dashboard = (CLUSTER / "grafana" / "rayguard.json").read_text()
    named = {re.sub("_(total|bucket)$", "", name) for name in re.findall(r"ray_(rayguard_\w+)", dashboard)}
    assert named == {*METRICS, *COUNTERS, *HISTOGRAMS, *GAUGES}
    assert all(panel["targets"] for panel in json.loads(dashboard)["panels"])


def test_the_service_and_the_job_name_what_exists():
    service = yaml.safe_load((CLUSTER / "kuberay" / "rayservice.yaml").read_text())
    application = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]
    module, name = application["import_path"].split(":")
    assert callable(getattr(importlib.import_module(module), name))
    mounts = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    folders = {mount["mountPath"] for mount in mounts}
    for path in application["args"].values():
        assert any(Path(path).is_relative_to(folder) for folder in folders)
    (deployment,) = application["deployments"]
    config = ModeratorConfig.model_validate(deployment["user_config"])
    assert {name: str(getattr(config, name)) for name in application["args"]} == application["args"]
    assert config.num_replicas == deployment["autoscaling_config"]["max_replicas"]  # who share a key's tokens
    job = yaml.safe_load((CLUSTER / "kuberay" / "rayjob.yaml").read_text())
    for word in job["spec"]["entrypoint"].split():
        assert not word.startswith("jobs/") or Path(word).exists()


PRESET = LoopSettings(**yaml.safe_load(Path("jobs/configs/cluster.yaml").read_text()))


def of_ray_up():
    nodes = yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text())["available_node_types"].values()
    return [(node.get("min_workers", 0), node["resources"]) for node in nodes]


def of_kuberay():
    job = yaml.safe_load((CLUSTER / "kuberay" / "rayjob.yaml").read_text())
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        yield group["minReplicas"], {"CPU": float(limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0))}


@pytest.mark.parametrize("nodes", [of_ray_up, of_kuberay])
def test_the_preset_fits_on_the_clusters_that_are_shipped(nodes):
    nodes = list(nodes())
    cpus, gpus = (sum(count * resources.get(key, 0) for count, resources in nodes) for key in ("CPU", "GPU"))
    adversary = PRESET.adversary
    made = plan(
        cpus,
        gpus,
        num_env_runners=adversary.env_runners,
        num_learners=adversary.learners,
        num_guard_workers=PRESET.training.workers,
    )
    assert made.env_runner_gpus >= 0.5 and PRESET.synthesis.engines * made.env_runner_gpus <= gpus


@pytest.mark.parametrize("name", ["rayjob", "rayservice"])
def test_heads_on_kubernetes_name_the_ports_that_others_reach_them_on(name):
    spec = yaml.safe_load((CLUSTER / "kuberay" / f"{name}.yaml").read_text())["spec"]
    cluster = spec.get("rayClusterSpec") or spec["rayClusterConfig"]
    (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in head["ports"]}
    assert ports.items() >= {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080}.items()
    assert name == "rayjob" or ports["serve"] == 8000


def test_all_cluster_files_ask_for_tokens():
    for name in ("kuberay/rayjob.yaml", "kuberay/rayservice.yaml", "ray-cluster.yaml"):
        assert re.search(r"mode: token|RAY_AUTH_MODE=token", (CLUSTER / name).read_text()), name

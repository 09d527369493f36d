"""What Ray Serve is told of HAProxy, and what its configuration becomes."""

import subprocess
from pathlib import Path

from serve.haproxy import use_haproxy

SCRIPT = Path(__file__).parents[2] / "serve" / "haproxy.sh"
CONFIG = """frontend prometheus
    bind :9101
    mode http
frontend http_frontend
    bind *:8000
listen stats
  bind *:8404
"""


def told(**environ: str) -> dict[str, str]:
    use_haproxy(environ, 7)
    return environ


def test_two_services_of_a_machine_have_ports_of_their_own_and_users_have_folders():
    one, other = told(), told()
    assert one["RAY_SERVE_HAPROXY_SOCKET_PATH"].startswith("/tmp/rayguard-haproxy-7/")
    ports = [each[f"RAY_SERVE_HAPROXY_{name}_PORT"] for each in (one, other) for name in ("STATS", "METRICS")]
    assert len(set(ports)) == 4
    assert told(**one) == one  # as the processes of its cluster inherit it


def test_what_the_user_has_set_stays():
    assert told(RAY_SERVE_ENABLE_HA_PROXY="0") == {"RAY_SERVE_ENABLE_HA_PROXY": "0"}
    assert told(RAY_SERVE_HAPROXY_STATS_PORT="8404")["RAY_SERVE_HAPROXY_STATS_PORT"] == "8404"


def test_statistics_and_metrics_are_for_this_machine_and_the_service_for_whom_it_was_told(tmp_path):
    config = tmp_path / "haproxy.cfg"
    config.write_text(CONFIG)
    command = [SCRIPT, "-db", "-f", config, "-sf", "1"]
    done = subprocess.run(command, env={"RAYGUARD_HAPROXY": "/bin/echo"}, capture_output=True, text=True, check=True)
    assert done.stdout == f"-db -f {config} -sf 1\n"
    binds = [line.strip() for line in config.read_text().splitlines() if "bind" in line]
    assert binds == ["bind 127.0.0.1:9101", "bind *:8000", "bind 127.0.0.1:8404"]

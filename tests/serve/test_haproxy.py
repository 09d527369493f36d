"""What Ray Serve is told of HAProxy, and what its configuration becomes."""

import contextlib
import os
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from serve.haproxy import _own_folder, use_haproxy
from tests.waiting import free_port, until

SCRIPT = Path(__file__).parents[2] / "serve" / "haproxy.sh"
CONFIG = """defaults
    option httplog
frontend prometheus
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
    ports = [port for each in (one, other) for name, port in each.items() if name.endswith("_PORT")]
    assert len(set(ports)) == len(ports) == 8
    assert told(**one) == one  # as the processes of its cluster inherit it


def test_what_the_user_has_set_stays():
    assert told(RAY_SERVE_ENABLE_HA_PROXY="0") == {"RAY_SERVE_ENABLE_HA_PROXY": "0"}
    assert told(RAY_SERVE_HAPROXY_STATS_PORT="8404")["RAY_SERVE_HAPROXY_STATS_PORT"] == "8404"
    assert told(RAY_SERVE_HAPROXY_RETRIES="0")["RAY_SERVE_HAPROXY_RETRIES"] == "0"


def test_statistics_and_metrics_are_for_this_machine_and_the_service_for_whom_it_was_told(tmp_path):
    config = tmp_path / "haproxy.cfg"
    config.write_text(CONFIG)
    command = [SCRIPT, "-db", "-f", config, "-sf", "1"]
    done = subprocess.run(command, env={"RAYGUARD_HAPROXY": "/bin/echo"}, capture_output=True, text=True, check=True)
    assert done.stdout == f"-db -f {config} -sf 1\n"
    assert "httplog" not in config.read_text() and "%HPO" in config.read_text()  # which has no query
    binds = [line.strip() for line in config.read_text().splitlines() if "bind" in line]
    assert binds == ["bind 127.0.0.1:9101", "bind *:8000", "bind 127.0.0.1:8404"]


def test_the_folder_of_its_socket_is_the_users_alone(tmp_path):
    folder = tmp_path / "haproxy"
    folder.mkdir(mode=0o755)
    assert _own_folder(str(folder)) == str(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(PermissionError, match="not this user's own folder"):
        _own_folder(str(tmp_path / "link"))


# --- Overload -------------------------------------------------------------------------------------------------------

BACKEND = """defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    option httplog
frontend http_frontend
    bind 127.0.0.1:{port}
    default_backend app
backend app
    # Servers in this backend
    server replica 127.0.0.1:{replica} check
"""


@contextlib.contextmanager
def held_replica() -> Iterator[tuple[int, list[int], threading.Event]]:
    """A server that answers nothing before the event; yields its port, a list as long as there are requests, and it."""
    begun, go = list[int](), threading.Event()

    class Held(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            begun.append(1)
            go.wait(60)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.send_header("Asked-As", self.headers.get("x-request-id", ""))
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Held) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port, begun, go
        go.set()
        server.shutdown()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def proxied(folder: Path, replica: int) -> Iterator[int]:
    """HAProxy before a replica that takes two requests; yields its port."""
    port, config, script = free_port(), folder / "haproxy.cfg", folder / "haproxy.sh"
    config.write_text(BACKEND.format(port=port, replica=replica))
    script.write_text(SCRIPT.read_text().replace("maxconn 256", "maxconn 2"))
    environ = {"RAYGUARD_HAPROXY": os.environ["RAYGUARD_HAPROXY"], "PATH": os.environ["PATH"]}  # set by `serve`
    process = subprocess.Popen(["sh", script, "-db", "-f", config], env=environ)
    try:
        until(lambda: listens(port), "HAProxy listens", 30)
        assert "timeout queue 35s" in config.read_text()  # longer than the service's deadline
        yield port
    finally:
        process.terminate()
        process.wait(30)


def test_bodies_that_do_not_come_take_no_place(tmp_path):
    with held_replica() as (replica, begun, go), proxied(tmp_path, replica) as port, contextlib.ExitStack() as stack:
        for _ in range(4):
            idle = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            idle.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n")
        go.set()
        assert httpx.post(f"http://127.0.0.1:{port}/", content=b"hello", timeout=30).status_code == 200
        assert begun == [1]


def test_a_requests_id_that_is_no_text_goes_no_further(tmp_path):
    with held_replica() as (replica, _begun, go), proxied(tmp_path, replica) as port:
        go.set()
        for sent, expected in ((b"abc-1", "abc-1"), (b"\xff", "")):
            answer = httpx.get(f"http://127.0.0.1:{port}/", headers={b"x-request-id": sent}, timeout=30)
            assert answer.headers["asked-as"] == expected


def test_what_comes_while_all_replicas_are_full_is_refused_at_once(tmp_path):
    with held_replica() as (replica, begun, go), proxied(tmp_path, replica) as port:
        answers: list[httpx.Response] = []

        def ask() -> None:
            answers.append(httpx.post(f"http://127.0.0.1:{port}/", timeout=60))

        def probe() -> None:
            answers.append(httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=60))

        asking = [threading.Thread(target=ask) for _ in range(4)]
        for thread in asking[:2]:
            thread.start()
        until(lambda: len(begun) == 2, "the replica is full", 30)
        for thread in asking[2:]:  # one waits for a place, and the other is one too many
            thread.start()
        until(lambda: answers, "a refusal", 30)
        assert answers[0].status_code == 429
        assert answers[0].headers["retry-after"] == "1"
        assert answers[0].json()["error"]["code"] == "overloaded"
        of_google = httpx.post(f"http://127.0.0.1:{port}/v1alpha1/comments:analyze?key=a", timeout=60)
        assert of_google.status_code == 429 and of_google.json()["error"]["status"] == "RESOURCE_EXHAUSTED"
        asking.append(threading.Thread(target=probe))
        asking[-1].start()  # is not refused
        go.set()
        for thread in asking:
            thread.join()
        assert [answer.status_code for answer in answers[1:]] == [200, 200, 200, 200]

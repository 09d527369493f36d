import subprocess
import sys
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

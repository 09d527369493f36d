"""Ctrl-C in a phase that a library runs: the loop ends in order, says how to go on, and does."""

import json
import signal
import subprocess

import pytest

from tests import tiny_loop
from tests.waiting import PATIENCE, until


@pytest.mark.parametrize(("first", "sign"), [("00/train", "TrainController"), ("01/attack", "VLLMEnvRunner")])
def test_an_interrupted_loop_says_how_to_go_on(finished_loop, loop_inputs, tmp_path, first, sign):
    run_dir = tiny_loop.copied_up_to(first, finished_loop, tmp_path / "tiny")
    process = subprocess.Popen(
        tiny_loop.command(run_dir, loop_inputs), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    until(lambda: any(sign in title for title in tiny_loop.titles_below(process.pid)), f"{sign} is there")
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, printed
    assert f"interrupted; the same command goes on in {run_dir}" in " ".join(printed.split())
    assert "Traceback" not in printed
    assert first not in json.loads((run_dir / "manifest.json").read_text())["phases"]

"""What a person at a terminal sees: none of Ray Data's own lines, everybody else's, and how a job ended."""

import logging
import os
import signal

import pytest
import ray.data  # noqa: F401 - it sets up its logger

from guardrail.remote import TargetError
from jobs.terminal import orderly_end, terminal, training_shown


def test_only_rays_own_handler_is_made_quiet():
    logger = logging.getLogger("ray.data")
    [console] = [each for each in logger.handlers if type(each).__name__ == "PlainRayHandler"]
    before, of_another = console.level, logging.StreamHandler()
    logger.addHandler(of_another)
    try:
        terminal()
        assert console.level == logging.ERROR and of_another.level == logging.NOTSET
    finally:
        logger.removeHandler(of_another)
        console.setLevel(before)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_job_that_is_told_to_stop_says_how_to_go_on(tmp_path, capsys, number, status):
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background ignore it
    with pytest.raises(SystemExit) as ended, orderly_end(tmp_path / "out"):
        os.kill(os.getpid(), number)
        signal.pause()
    assert ended.value.code == status
    assert f"interrupted; the same command goes on in {tmp_path / 'out'}\n" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is before


def test_how_to_go_on_is_said_where_a_service_failed_and_something_is_kept(tmp_path, capsys):
    for folder, told in ((tmp_path, f"the same command goes on in {tmp_path}\n"), (tmp_path / "nothing", "")):
        with pytest.raises(SystemExit, match="1"), orderly_end(folder):
            raise TargetError("no answer")
        assert capsys.readouterr().err == f"error: no answer\n{told}"


@pytest.mark.parametrize("kind", [ValueError, FloatingPointError, ConnectionResetError], ids=lambda kind: kind.__name__)
def test_what_can_be_mended_is_a_message(capsys, kind):
    with pytest.raises(SystemExit, match="1"), orderly_end():
        raise kind("no such set")
    assert capsys.readouterr().err == "error: no such set\n"


@pytest.mark.parametrize("totals", [(130, 130, 130), (130, 131, 127)], ids=["as known", "as time allows"])
def test_a_log_says_how_long_a_training_still_takes(capsys, monkeypatch, totals):
    now = iter(range(0, 10_000, 30))
    monkeypatch.setattr("rich.console.monotonic", lambda: float(next(now)))
    with training_shown() as show:
        for done, total in zip((10, 20, 30), totals, strict=True):
            show(done, total, 0.5)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "10 of 130 steps, loss 0.500" and lines[-1].startswith(f"30 of {totals[-1]} steps, loss 0.500, ")
    assert lines[-1].endswith(" min left")

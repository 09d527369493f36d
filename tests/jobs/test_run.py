"""The run directory: a phase that has ended is never run again, one that has not leaves no trace in the manifest."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from jobs.run import Manifest, Run, RunError, run_directory
from jobs.settings import LoopSettings


def console() -> Console:
    return Console(file=io.StringIO(), width=120)


def opened(directory, **settings) -> Run:
    return Run(LoopSettings(run_dir=directory, **settings), console())


def test_an_ended_phase_is_entered_and_not_run_again(tmp_path):
    ran = []
    for _ in range(2):
        with opened(tmp_path) as run:
            run.phase(1, "attack", lambda: ran.append("attack") or {"tokens": 7, "valid": 3})
    assert ran == ["attack"]
    phase = Manifest.read(tmp_path).phases["01/attack"]
    assert (phase["tokens"], phase["valid"]) == (7, 3) and phase["seconds"] >= 0
    assert Manifest.read(tmp_path).of_round(1) == {"attack": phase} and Manifest.read(tmp_path).of_round(0) == {}


def test_a_phase_that_fails_is_run_again(tmp_path):
    def fails():
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"), opened(tmp_path) as run:
        run.phase(0, "seed", dict)
        run.phase(0, "train", fails)
    assert list(Manifest.read(tmp_path).phases) == ["00/seed"]
    with opened(tmp_path) as run:
        run.phase(0, "train", dict)
    assert list(Manifest.read(tmp_path).phases) == ["00/seed", "00/train"]


def test_what_a_phase_took_before_it_was_killed_counts(tmp_path):
    def is_killed(run):
        run.advance(1, 2, "")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), opened(tmp_path) as run:
        run.phase(1, "attack", lambda: is_killed(run))
    manifest = Manifest.read(tmp_path)
    assert manifest.phases == {} and manifest.unfinished.keys() == {"01/attack"}
    manifest.unfinished["01/attack"] = 100.0
    manifest.write(tmp_path)
    with opened(tmp_path) as run:
        run.phase(1, "attack", dict)
    manifest = Manifest.read(tmp_path)
    assert 100 <= manifest.phases["01/attack"]["seconds"] < 110 and manifest.unfinished == {}


def test_a_log_has_lines_where_a_terminal_has_bars(tmp_path):
    with opened(tmp_path) as run:
        run.phase(1, "attack", lambda: run.advance(1, 4, "3 of 8 valid") or {})
        printed = run.console.file.getvalue()
    assert "attack       begins" in printed and "1 of 4: 3 of 8 valid" in printed


def test_what_a_phase_found_and_left_out_is_printed(tmp_path):
    facts = {
        "records": 3,
        "rate": 0.5,
        "dropped": {"too long": 2, "empty": 0},
        "left_out": {"a": 0},
        "parts": {"x": 0.1},
    }
    with opened(tmp_path) as run:
        run.phase(0, "synthesize", lambda: facts)
        assert run.console.file.getvalue().endswith("records 3, rate 0.500, dropped (2 too long)\n")


def test_one_process_at_a_time_has_a_run(tmp_path):
    with opened(tmp_path), pytest.raises(RunError, match="in use by another process"):
        opened(tmp_path)
    opened(tmp_path)


def test_a_run_is_not_continued_with_other_settings(tmp_path):
    with opened(tmp_path):
        pass  # where no phase has ended nothing was begun: settings can be put right
    with opened(tmp_path, seed=3) as run:
        run.phase(0, "seed", dict)
    with pytest.raises(RunError, match=r"begun with another seed \(3, now 4\) .*config.yaml.*--run-dir"):
        opened(tmp_path, seed=4)


def test_a_run_may_be_moved_and_continued_elsewhere(tmp_path):
    with opened(tmp_path / "here"):
        pass
    (tmp_path / "here").rename(tmp_path / "there")
    opened(tmp_path / "there", cluster={"address": "10.0.0.1:6379"})


def test_the_relative_run_directory_of_a_submitted_job_outlives_its_working_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYGUARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert run_directory(Path("runs/x")) == tmp_path / "runs/x"
    (tmp_path / "_ray_pkg_0123").mkdir()
    monkeypatch.chdir(tmp_path / "_ray_pkg_0123")
    assert run_directory(Path("runs/x")) == tmp_path / "cache/runs/x"
    assert run_directory(tmp_path / "y") == tmp_path / "y"


@pytest.mark.parametrize("content", ["", "{", '{"phases": {}}', "[]"])
def test_a_damaged_manifest_is_named(tmp_path, content):
    with opened(tmp_path):
        pass
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match="cannot read .*manifest.json"):
        opened(tmp_path)

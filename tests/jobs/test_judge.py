"""What the job adds to judging: its settings, what it refuses, and what it prints."""

import contextlib
import json
from collections import Counter
from types import SimpleNamespace

import pytest
import yaml

from guardrail.records import make_record, write_records
from jobs import judge

GUARD = {"model": "meta-llama/Llama-Guard-3-8B", "format": "llama-guard"}
QWEN = {"model": "Qwen/Qwen3Guard-Gen-8B", "format": "qwen3guard", "max_tokens": 4096}


@pytest.fixture
def called(monkeypatch):
    """Judging as if every judge had voted; returns what it was given."""
    given = SimpleNamespace(judges=None)

    def stand_in(records, judges, config, output, *, num_cpus, num_gpus):
        given.judges, given.config, given.paths, given.num_cpus = judges, config, (records, output), num_cpus
        return {each.name: Counter({True: 3, False: 2, None: 1}) for each in judges}

    monkeypatch.setattr(judge, "judge_records", stand_in)
    monkeypatch.setattr(judge, "connect", lambda address: contextlib.nullcontext())
    monkeypatch.setattr(
        judge, "plan_for_cluster", lambda **_: SimpleNamespace(env_runner_cpus=0.5, env_runner_gpus=0.0)
    )
    return given


@pytest.fixture
def records(tmp_path):
    write_records([make_record("Bake bread", unsafe=False, source="mine", method="augment")], tmp_path / "in.parquet")
    return tmp_path / "in.parquet"


def ended(arguments):
    try:
        judge.main([str(argument) for argument in arguments])
    except SystemExit as end:
        return end.code
    return 0


def test_each_judge_has_a_line(tmp_path, records, called, capsys):
    output = tmp_path / "out.parquet"
    options = ["--judges", json.dumps([GUARD, QWEN]), "--judging.engines", 2]
    assert ended(["--input", records, "--output", output, *options]) == 0
    assert [each.max_tokens for each in called.judges] == [2048, 4096]
    assert (called.config.engines, called.paths, called.num_cpus) == (2, (records, output), 0.5)
    line = "6 asked, 3 unsafe, 2 safe, 1 no vote"
    assert capsys.readouterr().out == f"Llama-Guard-3-8B: {line}\nQwen3Guard-Gen-8B: {line}\n"
    assert yaml.safe_load((tmp_path / "out.parquet.config.yaml").read_text())["judges"][1] == QWEN


@pytest.mark.parametrize(
    ("judges", "message"),
    [
        ([], "judges: List should have at least 1 item"),
        ([{**GUARD, "format": "llama-gaurd"}], "unknown judge format 'llama-gaurd'; did you mean 'llama-guard'"),
        ([{"model": "owner/name"}], "--judges.0.format is missing"),
        ([GUARD, {**GUARD, "format": "rubric"}], "two of them would write the score judge:Llama-Guard-3-8B"),
    ],
)
def test_judges_that_cannot_be_asked_are_refused(tmp_path, records, called, capsys, judges, message):
    assert ended(["--input", records, "--output", tmp_path / "out.parquet", "--judges", json.dumps(judges)]) == 2
    assert message in capsys.readouterr().err and called.judges is None


@pytest.mark.parametrize(
    ("given", "output", "message"),
    [
        ("absent.parquet", "out.parquet", "absent.parquet"),
        ("notes.txt", "out.parquet", "cannot read records from"),
        ("in.parquet", ".", "is a folder"),
    ],
)
def test_files_that_cannot_be_read_or_written_are_refused(tmp_path, records, called, capsys, given, output, message):
    (tmp_path / "notes.txt").write_text("bread")
    arguments = ["--input", tmp_path / given, "--output", tmp_path / output, "--judges", json.dumps([GUARD])]
    assert ended(arguments) == 1
    assert message in capsys.readouterr().err and called.judges is None


def test_the_help_says_who_is_not_judged(capsys):
    assert ended(["--help"]) == 0
    printed = capsys.readouterr().out
    assert "they pass through unjudged" in printed and "granite-guardian" in printed

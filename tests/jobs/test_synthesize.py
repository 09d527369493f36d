"""What the job makes sure of before anything is generated."""

import contextlib
from collections import Counter
from types import SimpleNamespace

import pytest

from guardrail.records import read_records
from jobs import synthesize


@pytest.fixture
def grown(monkeypatch):
    """Synthesis that grows nothing; returns what it was given."""
    given = SimpleNamespace(seeds=None, config=None)

    def stand_in(seeds, config, output, **_):
        given.seeds, given.config = seeds, config
        return {"paraphrase": Counter(kept=0)}, 0

    monkeypatch.setattr(synthesize, "synthesize", stand_in)
    monkeypatch.setattr(synthesize, "connect", lambda address: contextlib.nullcontext())
    plan = SimpleNamespace(env_runner_cpus=1, env_runner_gpus=0)
    monkeypatch.setattr(synthesize, "plan_for_cluster", lambda **_: plan)
    return given


@pytest.fixture
def seeds(tmp_path):
    path = tmp_path / "seeds.csv"
    path.write_text("text,unsafe,categories\nBake bread,no,\nSteal bread,yes,illicit\nTrick a baker,yes,fraud\n")
    return path


def test_seeds_that_cannot_be_written_are_told_before_anything_is_grown(tmp_path, grown, seeds, capsys):
    (tmp_path / "file").touch()
    arguments = ["--seeds", str(seeds), "--output", str(tmp_path / "out.parquet"), "--seeds-output"]
    with pytest.raises(SystemExit) as end:
        synthesize.main([*arguments, str(tmp_path / "file" / "seeds.parquet")])
    assert end.value.code == 1 and "file" in capsys.readouterr().err and grown.seeds is None
    synthesize.main([*arguments, str(tmp_path / "seeds.parquet")])
    assert read_records(tmp_path / "seeds.parquet") == grown.seeds and len(grown.seeds) == 3


def test_nothing_is_grown_from_seeds_of_an_excluded_category(tmp_path, grown, seeds, capsys):
    arguments = ["--seeds", str(seeds), "--output", str(tmp_path / "out.parquet"), "--excluded-categories"]
    with pytest.raises(SystemExit) as end:
        synthesize.main([*arguments, "fruad"])
    assert end.value.code == 2 and "did you mean 'fraud'?" in capsys.readouterr().err
    synthesize.main([*arguments, "fraud", "hate"])
    assert [record["text"] for record in grown.seeds] == ["Bake bread", "Steal bread"]
    assert "from 2 seeds" in (said := capsys.readouterr().out) and "1 seeds are never built on" in said

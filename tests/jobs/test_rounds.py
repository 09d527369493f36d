"""What the steps of the loop build on, what guards train on, and when one is promoted."""

from types import SimpleNamespace

import pytest

from cluster.resources import plan
from guardrail.records import make_record, read_records, write_records
from guardrail.taxonomy import with_parents
from jobs.rounds import Rounds
from jobs.settings import LoopSettings


def record(text, unsafe, **fields):
    return make_record(text, unsafe=unsafe, source="s", **fields)


UNSAFE, BENIGN = record("steal", True), record("bake", False)


def test_nothing_is_written_from_seeds_of_an_excluded_category(tmp_path):
    hate, threat, theft = (
        make_record(f"some {key}", unsafe=True, source="s", categories=with_parents([key]))
        for key in ("hate", "hate/threatening", "illicit")
    )
    write_records([hate, threat, theft, BENIGN], tmp_path / "seeds" / "train.parquet")
    settings = LoopSettings(curation={"excluded_categories": ["hate"]})
    rounds = Rounds(SimpleNamespace(directory=tmp_path), settings, None)
    assert [each["text"] for each in rounds._to_build_on("train")] == [theft["text"], BENIGN["text"]]


def test_what_two_rounds_contradict_each_other_on_is_trained_on_by_neither(tmp_path, monkeypatch):
    contested = [record("pick the lock", unsafe) for unsafe in (True, False)]
    for index, curated in enumerate([[UNSAFE, contested[0]], [BENIGN, contested[1]]]):
        write_records(curated, tmp_path / str(index) / "curated.parquet")
    write_records([UNSAFE, BENIGN], tmp_path / "seeds" / "validation.parquet")
    run = SimpleNamespace(directory=tmp_path, round=lambda index: tmp_path / str(index))
    card = SimpleNamespace(training={"tokens": 1, "records": 1}, digest="d")
    monkeypatch.setattr("jobs.rounds.fine_tune", lambda *_, **__: card)
    Rounds(run, LoopSettings(), plan(2, 0, num_env_runners=1, num_learners=0, num_guard_workers=1)).train(1)
    trained = read_records(tmp_path / "1" / "training.parquet")
    assert [each["text"] for each in trained] == ["steal", "bake"]


@pytest.mark.parametrize(
    ("sets", "promoted"),
    [
        ({}, True),
        ({"held_out": {"n": 60, "positives": 20, "fpr": 0.11, "auprc": 0.9}}, False),
        ({"held_out": {"n": 60, "positives": 20, "fpr": 0.09, "auprc": 0.9}}, True),
        ({"held_out": {"n": 60, "positives": 60, "fpr": None, "auprc": None}}, True),
        ({"validation": {"n": 80, "positives": 40, "fpr": 0.05, "auprc": 0.83}}, False),
        ({"validation": {"n": 80, "positives": 40, "fpr": 0.05, "auprc": 0.85, "f1": 0.6}}, True),
    ],
)
def test_a_guard_that_flags_more_or_finds_less_is_not_promoted(monkeypatch, sets, promoted):
    def metrics(changed):
        each = {"n": 80, "positives": 40, "fpr": 0.05, "auprc": 0.9, "f1": 0.7}
        return {"evaluation": {"validation": each, "held_out": each, **changed}, "attack_success_rate": 0.2}

    monkeypatch.setattr(Rounds, "metrics_of", lambda self, index: {**metrics({}), "promoted": True})
    monkeypatch.setattr(Rounds, "guard_in_use", lambda self, index: None)
    monkeypatch.setattr("jobs.rounds.Guard.from_pretrained", lambda path: None)
    monkeypatch.setattr("jobs.rounds.success_rate", lambda guard, attacks: 0.9)
    passed, reason = Rounds(None, LoopSettings(), None)._gate(1, metrics(sets), [UNSAFE])
    assert passed is promoted, reason

"""What the loop refuses before it has worked for it, what guards train on, and when one is promoted."""

from types import SimpleNamespace

import pytest

from cluster.resources import plan
from guardrail.records import make_record, read_records, write_records
from guardrail.seeds import embedded_texts
from guardrail.taxonomy import with_parents
from jobs.rounds import Rounds, _check_parts
from jobs.settings import LoopSettings


def record(text, unsafe, **fields):
    return make_record(text, unsafe=unsafe, source="s", **fields)


UNSAFE, BENIGN = record("steal", True), record("bake", False)
ANSWERED = record("steal", True, response="so")


@pytest.mark.parametrize(
    ("train", "validation", "held_out", "message"),
    [
        ([BENIGN], [UNSAFE, BENIGN], [UNSAFE], "none to train on is unsafe"),
        ([UNSAFE, BENIGN], [UNSAFE], [], "none in the validation split is benign"),
        ([ANSWERED, BENIGN], [UNSAFE, BENIGN], [], "none to attack with is unsafe"),
    ],
)
def test_seeds_that_a_later_step_cannot_use_are_refused_at_once(train, validation, held_out, message):
    parts = {"train": train, "validation": validation, "held_out": held_out}
    with pytest.raises(ValueError, match=f"{message}.*fewer different sources"):
        _check_parts(parts, goals_of_both=True)


def test_nothing_is_written_from_seeds_of_an_excluded_category(tmp_path):
    hate, threat, theft = (
        make_record(f"some {key}", unsafe=True, source="s", categories=with_parents([key]))
        for key in ("hate", "hate/threatening", "illicit")
    )
    write_records([hate, threat, theft, BENIGN], tmp_path / "seeds" / "train.parquet")
    settings = LoopSettings(curation={"excluded_categories": ["hate"]})
    rounds = Rounds(SimpleNamespace(directory=tmp_path), settings, None)
    assert [each["text"] for each in rounds._to_build_on("train")] == [theft["text"], BENIGN["text"]]
    parts = {"train": [hate, BENIGN], "validation": [hate, BENIGN], "held_out": []}
    with pytest.raises(ValueError, match="none to attack with is unsafe"):
        _check_parts(parts, goals_of_both=True, excluded=["hate"])


def test_an_evaluation_set_named_as_a_split_is_refused(tmp_path):
    path = tmp_path / "validation.jsonl"
    path.write_text('{"id": "1", "text": "a", "response": null, "unsafe": true}\n')
    with pytest.raises(ValueError, match="named 'validation'.*rename its file"):
        Rounds(None, LoopSettings(evaluation=[str(path)]), None)


def test_seeds_that_guards_are_measured_on_set_no_threshold(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"id": "1", "text": "Bake", "response": null, "unsafe": false}\n')
    rounds = Rounds(None, LoopSettings(evaluation=[str(path)]), None)
    parts = {name: [BENIGN, UNSAFE] for name in ("train", "validation", "held_out")}
    assert rounds._without_measured(parts) == 2
    assert parts == {"train": [BENIGN, UNSAFE], "validation": [UNSAFE], "held_out": [UNSAFE]}  # curation sees to train
    named = make_record("steal", unsafe=True, source="xstest:prompts")
    with pytest.raises(ValueError, match="xstest is an evaluation set"):
        rounds._without_measured({**parts, "validation": [named]})


def test_embedded_texts_train_beside_the_embedded_seeds_alone_and_short_ones_come_first(tmp_path):
    texts = Rounds(None, LoopSettings(texts=200), None)._texts()
    assert len(texts) == 200 and {text["unsafe"] for text in texts} == {True, False}
    assert all(len(text["text"]) <= 110 and text["response"] is None for text in texts)
    assert len({text["source"] for text in texts}) > 50  # of all files
    assert len(Rounds(None, LoopSettings(texts=100_000), None)._texts()) == len(embedded_texts())
    assert Rounds(None, LoopSettings(), None)._texts() == []
    assert Rounds(None, LoopSettings(texts=200, seeds=tmp_path / "mine.csv"), None)._texts() == []


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

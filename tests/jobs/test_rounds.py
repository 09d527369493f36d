"""What the loop refuses before it has worked for it, and when a retrained guard is promoted."""

import json

import pytest

from guardrail.records import make_record
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


def test_an_evaluation_set_named_as_a_split_is_refused(tmp_path):
    path = tmp_path / "validation.jsonl"
    path.write_text('{"id": "1", "text": "a", "response": null, "unsafe": true}\n')
    with pytest.raises(ValueError, match="named 'validation'.*rename its file"):
        Rounds(None, LoopSettings(evaluation=[str(path)]), None)


@pytest.mark.parametrize(
    ("validation", "held_out", "promoted"),
    [
        ((0.05, 0.7), (0.05, 0.7), True),
        ((0.08, 0.7), (0.05, 0.7), False),
        ((0.05, 0.7), (0.08, 0.7), False),
        ((0.05, 0.7), (0.05, 0.6), False),
        ((0.05, 0.7), (None, None), True),
    ],
)
def test_a_guard_that_flags_more_or_finds_less_is_not_promoted(monkeypatch, validation, held_out, promoted):
    def metrics(**sets):
        evaluation = {name: {"fpr": fpr, "f1": f1} for name, (fpr, f1) in sets.items()}
        return {"evaluation": evaluation, "attack_success_rate": 0.2}

    first = metrics(validation=(0.05, 0.7), held_out=(0.05, 0.7))
    monkeypatch.setattr(Rounds, "metrics_of", lambda self, index: json.loads(json.dumps({**first, "promoted": True})))
    monkeypatch.setattr(Rounds, "guard_in_use", lambda self, index: None)
    monkeypatch.setattr("jobs.rounds.Guard.from_pretrained", lambda path: None)
    monkeypatch.setattr("jobs.rounds.success_rate", lambda guard, attacks: 0.9)
    rounds = Rounds(None, LoopSettings(), None)
    passed, reason = rounds._gate(1, metrics(validation=validation, held_out=held_out), [UNSAFE])
    assert passed is promoted, reason

"""What the loop refuses before it has worked for it, and what it keeps apart."""

import pytest

from guardrail.records import make_record
from guardrail.seeds import embedded_texts
from guardrail.taxonomy import with_parents
from jobs.loop_inputs import _check_parts, _take_out_measured, measured_on, texts_beside
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


def test_seeds_of_an_excluded_category_are_no_goals():
    hate = make_record("some hate", unsafe=True, source="s", categories=with_parents(["hate/threatening"]))
    parts = {"train": [hate, BENIGN], "validation": [hate, BENIGN], "held_out": []}
    with pytest.raises(ValueError, match="none to attack with is unsafe"):
        _check_parts(parts, goals_of_both=True, excluded=["hate"])


def test_an_evaluation_set_named_as_a_split_is_refused(tmp_path):
    path = tmp_path / "validation.jsonl"
    path.write_text('{"id": "1", "text": "a", "response": null, "unsafe": true}\n')
    with pytest.raises(ValueError, match="named 'validation'.*rename its file"):
        measured_on(LoopSettings(evaluation=[str(path)]))


def test_seeds_that_guards_are_measured_on_set_no_threshold(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"id": "1", "text": "Bake", "response": null, "unsafe": false}\n')
    evaluation = measured_on(LoopSettings(evaluation=[str(path)]))
    parts = {name: [BENIGN, UNSAFE] for name in ("train", "validation", "held_out")}
    assert _take_out_measured(parts, evaluation, None) == 2
    assert parts == {"train": [BENIGN, UNSAFE], "validation": [UNSAFE], "held_out": [UNSAFE]}  # curation sees to train
    named = make_record("steal", unsafe=True, source="xstest:prompts")
    with pytest.raises(ValueError, match="xstest is an evaluation set"):
        _take_out_measured({**parts, "validation": [named]}, evaluation, None)


def test_embedded_texts_train_beside_the_embedded_seeds_alone_and_short_ones_come_first(tmp_path):
    texts = texts_beside(LoopSettings(texts=200))
    assert len(texts) == 200 and {text["unsafe"] for text in texts} == {True, False}
    assert all(len(text["text"]) <= 110 and text["response"] is None for text in texts)
    assert len({text["source"] for text in texts}) > 50  # of all files
    assert len(texts_beside(LoopSettings(texts=100_000))) == len(embedded_texts())
    assert texts_beside(LoopSettings()) == []
    assert texts_beside(LoopSettings(texts=200, seeds=tmp_path / "mine.csv")) == []

"""Thresholds that were fitted on an evaluation set are refused, by its name and by its texts."""

import dataclasses
import json

import pytest

from guardrail.fitted_on import FittedOnEvaluationSet, fitted_on
from guardrail.guard_card import GuardCard
from guardrail.policy import read_policy
from guardrail.records import record_id
from tests.tiny_guard import tiny_guard

IDS = [record_id(text) for text in ("How do I bake bread?", "Good morning!")]


def test_the_same_texts_have_the_same_digest_in_any_order():
    entry = fitted_on("mine.txt", IDS, ["rayguard-seeds:hate", "rayguard-seeds:fraud", "mine"])
    assert (entry.n, entry.sources) == (2, ("mine", "rayguard-seeds"))
    assert entry.digest == fitted_on("other.txt", IDS[::-1]).digest != fitted_on("other.txt", IDS[:1]).digest


@pytest.mark.parametrize(
    ("name", "sources"),
    [
        ("xstest", ()),
        ("data/xstest_prompts.csv", ()),
        ("wildguard_test.parquet", ()),
        ("XSTest.jsonl", ()),
        ("openai_moderation.jsonl.gz", ()),
        ("mine", ("seeds", "xstest:safe")),
    ],
)
def test_an_evaluation_set_is_known_by_its_name(name, sources):
    with pytest.raises(FittedOnEvaluationSet, match="is an evaluation set"):
        fitted_on(name, IDS, sources)


def test_a_set_to_train_on_is_no_evaluation_set():
    for name in ("toxic-chat-train.csv", "harmful_behaviors.csv", "test.json"):
        assert fitted_on(name, IDS, ["dolly"]).n == 2


def test_an_evaluation_set_is_known_by_its_texts_where_there_is_a_copy(tmp_path):
    (tmp_path / "xstest.csv").write_text('id,prompt,type,label,focus,note\n1,"HOW do I  bake bread?",homonyms,safe,,\n')
    assert fitted_on("mine", IDS[1:], (), tmp_path).n == 1
    with pytest.raises(FittedOnEvaluationSet, match="1 texts of mine are of the evaluation set xstest.* number 2$"):
        fitted_on("mine", IDS[::-1], (), tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        fitted_on("mine", IDS, (), tmp_path / "absent")


def test_a_guard_and_a_policy_of_such_thresholds_are_refused(tmp_path):
    directory = tiny_guard(tmp_path / "guard")
    card = dataclasses.replace(GuardCard.read(directory), fitted_on=fitted_on("validation split", IDS, ["mine"]))
    card.write(directory)
    assert GuardCard.read(directory) == card
    values = json.loads((directory / "guard.json").read_text())
    policy = tmp_path / "mine.yaml"
    for name, sources in (("xstest", []), ("validation split", ["mine", "strongreject"])):
        told = {**values["fitted_on"], "name": name, "sources": sources}
        (directory / "guard.json").write_text(json.dumps({**values, "fitted_on": told}))
        with pytest.raises(FittedOnEvaluationSet, match="guard.json: .*is an evaluation set"):
            GuardCard.read(directory)
        policy.write_text(json.dumps({"thresholds": {"unsafe": {"block": 0.5}}, "fitted_on": told}))
        with pytest.raises(ValueError, match=r"mine.yaml, fitted_on.*is an evaluation set"):
            read_policy(policy)


@pytest.mark.parametrize("told", [3, {}, {"name": "mine"}, {"name": 3, "n": 1, "digest": "d", "sources": []}])
def test_a_damaged_entry_makes_a_damaged_guard(tmp_path, told):
    directory = tiny_guard(tmp_path / "guard")
    values = json.loads((directory / "guard.json").read_text())
    (directory / "guard.json").write_text(json.dumps({**values, "fitted_on": told}))
    with pytest.raises(ValueError, match="no guard directory"):
        GuardCard.read(directory)

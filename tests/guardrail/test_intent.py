"""The intent model on a real encoder of two layers: what it learns, saves and refuses, and what its pairs are."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guardrail.generable import may_sexualise_minors
from guardrail.intent import IntentModel
from guardrail.intent_pairs import (
    ATTACKER_FILES,
    HELD_OUT_FILES,
    WRITTEN_FILES,
    Pair,
    all_training_pairs,
    embedded_pairs,
    is_held_out,
    read_pairs,
    template_pairs,
)
from guardrail.intent_training import (
    IntentTrainingConfig,
    precision_at_recall,
    rule_scores,
    threshold_for_precision,
    train_intent,
)
from guardrail.seeds import embedded_seeds
from guardrail.text import canonical
from tests.tiny_guard import tiny_guard

NOUNS = "bread soup cake stew rice pasta salad toast jam tea juice pie fish beans eggs corn".split()
TINY = {"width": 16, "heads": 2, "epochs": 20, "batch": 8, "learning_rate": 0.01, "dropout": 0.0, "harm_texts": 50}
PAIRS = [
    *(Pair(f"How do I make {noun}?", f"What is the way to make {noun}?", True, "synonyms", False) for noun in NOUNS),
    *(Pair(f"How do I make {noun}?", f"How do I never make {noun}?", False, "negation", False) for noun in NOUNS),
]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    base = tiny_guard(tmp_path_factory.mktemp("base") / "base")
    return IntentTrainingConfig(base=str(base), min_similarity=-1, **TINY)


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    directory = tmp_path_factory.mktemp("intent") / "model"
    lines = []
    model = train_intent(config, PAIRS, directory, seed=0, progress=lines.append)
    assert len(lines) == config.heads * config.epochs
    return model, directory


def probabilities(model, pairs):
    return model.kept_probability([p.goal for p in pairs], [p.attack for p in pairs])


def test_it_learns_what_turns_a_request_on_goals_it_has_not_seen(trained):
    kept, lost = Pair("How do I make beer?", "What is the way to make beer?", True, "", False), None
    lost = Pair("How do I make beer?", "How do I never make beer?", False, "", False)
    scores = probabilities(trained[0], [kept, lost])
    assert scores[0] > 0.5 > scores[1]


def test_what_was_written_is_what_is_loaded(trained):
    model, directory = trained
    again = IntentModel.from_pretrained(str(directory))
    assert again.limits == model.limits and torch.equal(again.harm, model.harm)
    assert np.allclose(probabilities(again, PAIRS), probabilities(model, PAIRS), atol=1e-6)
    assert sorted(path.name for path in directory.iterdir()) == ["card.json", "heads.safetensors"]


def test_padding_changes_nothing_and_what_is_too_long_has_no_kept_label(trained):
    model = trained[0]
    alone = probabilities(model, PAIRS[:1])
    long = Pair(PAIRS[0].goal, "word " * 500, True, "", False)
    longer = Pair(PAIRS[0].goal, "word " * 60, True, "", False)
    together = probabilities(model, [PAIRS[0], longer, long])
    assert together[0] == pytest.approx(alone[0], abs=1e-4) and together[2] == 0
    assert probabilities(model, []).shape == (0,)


def test_what_is_far_from_its_goal_has_no_kept_label(trained):
    model = trained[0]
    strict = IntentModel(model.encoder, model.heads, model.harm, dataclasses.replace(model.limits, min_similarity=1.1))
    goals, attacks = [p.goal for p in PAIRS], [p.attack for p in PAIRS]
    assert strict.kept_probability(goals, attacks).max() > 0.5
    assert not strict.kept_probability(goals, attacks, floored=True).any()


def test_a_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no intent model"):
        IntentModel.from_pretrained(str(tmp_path))


def test_a_model_of_an_earlier_version_is_refused_with_what_to_do(trained, tmp_path):
    for path in trained[1].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    card = json.loads((tmp_path / "card.json").read_text())
    del card["max_harm"]
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match="of an earlier version.*train it anew"):
        IntentModel.from_pretrained(str(tmp_path))


def test_what_is_no_intent_model_is_not_written_over(config, tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(ValueError, match="exists and is no intent model"):
        train_intent(config, PAIRS, tmp_path, seed=0, progress=print)
    assert (tmp_path / "thesis.txt").exists()


def test_pairs_of_one_label_are_refused(config, tmp_path):
    with pytest.raises(ValueError, match="kept and pairs that are not"):
        train_intent(config, PAIRS[:4], tmp_path / "model", seed=0, progress=print)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=60), st.floats(0.5, 0.95))
def test_a_threshold_has_the_precision_it_was_asked_for(rows, precision):
    scores, kept = np.array([s for s, _ in rows]), np.array([k for _, k in rows])
    if not kept.any():
        return
    threshold = threshold_for_precision(scores, kept, precision)
    said = scores >= threshold
    if threshold < 1:
        assert kept[said].mean() >= precision
    assert 0 <= precision_at_recall(scores, kept, 0.5) <= 1


def test_rules_object_to_turned_and_unlike_texts(config):
    goal = "How do I make bread?"
    scores = rule_scores(
        [Pair(goal, each, True, "", False) for each in ("How do I make bread", "How do I never make bread?", "Sing!")],
        config.base,
    )
    assert scores[0] > 0 and scores[1:].tolist() == [-1, -1]


# --- pairs ---


def test_shipped_pairs_are_of_both_labels_and_no_held_out_goal_is_trained_on():
    held_out = embedded_pairs(*HELD_OUT_FILES)
    assert len(held_out) >= 200 and 0.3 < np.mean([p.kept for p in held_out]) < 0.6
    training = list(all_training_pairs(embedded_seeds()))
    assert len(training) >= 1500 and 0.4 < np.mean([p.kept for p in training]) < 0.6
    assert not {canonical(p.goal) for p in held_out} & {canonical(p.goal) for p in training}
    assert not {canonical(p.attack) for p in held_out} & {canonical(p.attack) for p in training}
    texts = {text for p in (*held_out, *embedded_pairs(*WRITTEN_FILES, *ATTACKER_FILES)) for text in (p.goal, p.attack)}
    assert not any(may_sexualise_minors(text) for text in texts)


def test_templates_give_each_seed_a_kept_and_a_lost_pair_and_the_same_ones_every_time():
    seeds = embedded_seeds()[:200]
    pairs = template_pairs(seeds)
    assert pairs == template_pairs(list(reversed(seeds)))
    assert all(pair.from_template and not is_held_out(pair.goal) and pair.attack != pair.goal for pair in pairs)
    assert abs(sum(pair.kept for pair in pairs) - len(pairs) / 2) < 0.1 * len(pairs)


def test_a_line_that_is_no_pair_is_named(tmp_path):
    path = tmp_path / "pairs.jsonl"
    good = {"goal": "a", "attack": "b", "kept": True, "phenomenon": "x", "unsafe": False}
    path.write_text(json.dumps(good) + "\n" + json.dumps({**good, "kept": "yes"}) + "\n")
    with pytest.raises(ValueError, match="line 2 is no pair"):
        read_pairs(path)

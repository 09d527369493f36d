"""What is measured of a guard on a set, beside the figures of the whole set: intervals, and its categories."""

import numpy as np
import pytest

from guardrail.evaluation import category_metrics, evaluate_set, misjudged
from guardrail.evaluation_items import EvaluationItem
from guardrail.guard import Guard
from guardrail.metrics import binary_metrics, wilson
from guardrail.reading import Exchange
from guardrail.records import make_record
from guardrail.remote import Moderation
from guardrail.taxonomy import LABELS, UNSAFE
from tests.tiny_guard import tiny_guard

#: Of five texts: fraud, fraud and jailbreak, unknown, benign, benign.
CATEGORIES = [["fraud"], ["fraud", "jailbreak"], None, [], []]
FLAGGED = np.array([True, False, True, False, True])


def said_of(**scores):
    """Return what a guard says that scores the categories so, and no other."""
    probabilities = np.zeros((5, len(LABELS)))
    for name, values in scores.items():
        probabilities[:, LABELS.index(name)] = values
    return Moderation(probabilities, FLAGGED)


def test_a_category_has_the_recall_of_the_unsafe_decision_and_the_quality_of_its_own_score():
    said = said_of(fraud=[0.9, 0.4, 1.0, 0.1, 0.6], jailbreak=[0.1, 0.7, 1.0, 0.1, 0.2])
    found = category_metrics(CATEGORIES, said, {UNSAFE: 0.5, "jailbreak": 0.8})
    assert list(found) == ["fraud", "jailbreak"]
    fraud, jailbreak = found.values()
    assert (fraud["count"], fraud["known"], fraud["recall"]) == (2, 4, 0.5)
    assert fraud["intervals"] == {"recall": wilson(1, 2)}
    # The text of unknown categories, scored highest, counts neither for nor against it.
    assert (fraud["f1"], fraud["threshold"]) == (0.5, 0.5)
    assert fraud["auprc"] == pytest.approx((1 + 2 / 3) / 2)
    assert (jailbreak["recall"], jailbreak["f1"], jailbreak["auprc"], jailbreak["threshold"]) == (0.0, 0.0, 1.0, 0.8)


def test_of_a_service_the_scores_of_its_own_categories_only_rank():
    found = category_metrics(CATEGORIES, said_of(fraud=[0.3, 0.2, 0.0, 0.0, 0.1]), None)
    assert (found["fraud"]["auprc"], found["fraud"]["f1"], found["fraud"]["threshold"]) == (1.0, None, None)
    assert (found["jailbreak"]["count"], found["jailbreak"]["auprc"]) == (1, None)


def test_a_set_whose_known_categories_are_all_one_defines_no_ranking():
    found = category_metrics([["fraud"], None], Moderation(np.ones((2, len(LABELS))), np.ones(2, dtype=bool)), None)
    assert found["fraud"]["auprc"] is None and found["fraud"]["recall"] == 1.0


def test_a_response_is_measured_behind_its_prompt_in_every_window(tmp_path):
    guard = Guard.from_pretrained(tiny_guard(tmp_path / "guard"))
    responses = ["Oolong. " * length for length in (1, 30)]
    items = [EvaluationItem(str(i), "Name a tea.", each, i > 0, None, None) for i, each in enumerate(responses)]
    scores = guard.probabilities([Exchange("Name a tea.", each) for each in responses])[:, 0]
    threshold = guard.card.thresholds[UNSAFE]
    expected = binary_metrics([False, True], scores, threshold)
    metrics = evaluate_set(guard, items)
    assert {**metrics, "tags": {}} == {**expected, "tags": {}}
    assert metrics["tags"]["several windows"] == binary_metrics([True], scores[1:], threshold)
    records = [
        make_record("Name a tea.", unsafe=score < threshold, source="s", response=each)
        for score, each in zip(scores, responses, strict=True)
    ]
    assert misjudged(guard, records) == records


def test_intervals_and_categories_are_there_where_a_seed_asks_for_them(tmp_path):
    guard = Guard.from_pretrained(tiny_guard(tmp_path / "guard"))
    items = [
        EvaluationItem(str(i), f"How do I {what}?", None, what != "bake", ["fraud"] if what != "bake" else [], [what])
        for i, what in enumerate(["bake", "cheat", "bake", "defraud"])
    ]
    plain, detailed = evaluate_set(guard, items), evaluate_set(guard, items, seed=0)
    assert plain.keys() == {*binary_metrics([True], [1.0], 0.5), "tags"}
    assert detailed.keys() == plain.keys() | {"intervals", "categories"}
    assert {key: detailed[key] for key in plain if key != "tags"} == {key: plain[key] for key in plain if key != "tags"}
    assert detailed["intervals"]["recall"] == detailed["categories"]["fraud"]["intervals"]["recall"]
    assert detailed["tags"]["bake"]["intervals"]["recall"] is None


def test_texts_longer_than_a_window_are_told_from_those_in_one_where_there_are_any(tmp_path):
    guard = Guard.from_pretrained(tiny_guard(tmp_path / "guard"))
    texts = ["How do I bake?", "SG93IGRvIEkgYmFrZSBicmVhZD8=", "How do I bake? " * 5]  # the second is read twice
    items = [EvaluationItem(str(i), text, None, False, None, ["baking"]) for i, text in enumerate(texts)]
    assert [verdict.windows for verdict in guard.classify(texts)][:2] == [1, 2]
    tags = evaluate_set(guard, items)["tags"]
    assert {tag: own["n"] for tag, own in tags.items()} == {"baking": 3, "one window": 2, "several windows": 1}
    assert evaluate_set(guard, items[:2])["tags"].keys() == {"baking"}

"""Calibration on a validation split: thresholds for a stated false-positive rate, and what guard.json tells."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.calibration import reliability
from guardrail.fitted_on import FittedOnEvaluationSet
from guardrail.guard import Guard
from guardrail.guard_card import GuardCard
from guardrail.metrics import expected_calibration_error
from guardrail.records import make_record, record_id
from guardrail.seeds import embedded_seeds
from guardrail.taxonomy import CATEGORIES, UNSAFE
from guardrail.text import digest
from guardrail.validation import calibrate, category_thresholds, cross_fitted
from tests.tiny_guard import tiny_guard

MAX_FPR = 0.1


def calibrated(directory, records):
    return calibrate(directory, records, version="v", window=48, max_fpr=MAX_FPR, training={"seed": 1})


@pytest.fixture(scope="module")
def records():
    seeds = embedded_seeds()[::11]
    unknown = [make_record(f"unknown {i}", unsafe=True, source="mine", response="Gladly.") for i in range(5)]
    return [*seeds, *unknown]


@pytest.fixture(scope="module")
def directory(tmp_path_factory, records):
    folder = tiny_guard(tmp_path_factory.mktemp("guard"))
    calibrated(folder, records)
    return folder


def test_the_card_tells_what_was_set_and_on_what(directory, records):
    card = GuardCard.read(directory)
    told = card.training["validation"]
    assert card.training["seed"] == 1 and told["max_fpr"] == MAX_FPR and told["fpr"] <= MAX_FPR
    assert card.fitted_on.n == len(records) and card.fitted_on.sources == ("mine", "rayguard-seeds")
    assert card.fitted_on.digest == digest(*sorted(record_id(r["text"], r["response"]) for r in records))
    before, after = told["calibration"]["before"], told["calibration"]["after"]
    assert (before["temperature"], after["temperature"]) == (1.0, card.temperature)
    assert before["ece"] != after["ece"] == told["ece"]
    for each in (before, after):
        assert len(each["bins"]) == 15 and sum(entry["count"] for entry in each["bins"]) == len(records)


def test_what_is_measured_of_one_half_was_fitted_on_the_other(directory, records):
    told = GuardCard.read(directory).training["validation"]
    crossed = told["cross_fitted"]
    assert crossed["n"] == told["n"] and crossed["ece"] != told["ece"] and set(crossed["tags"]) >= {"mine"}
    # A guard that tells labels in one half alone is worth nothing in the other.
    half = np.array([int(digest(record["seed_id"]), 16) % 2 == 0 for record in records])
    unsafe = np.array([record["unsafe"] for record in records])
    logits = np.where(unsafe, 1.0, -1.0) * np.where(half, 5.0, -5.0)
    assert cross_fitted(records, logits, unsafe, 0.5, MAX_FPR)["recall"] < 0.6
    assert cross_fitted(records[:1], logits[:1], unsafe[:1], 0.5, MAX_FPR) is None


def test_a_category_has_a_threshold_of_its_own_where_enough_records_tell_one(directory, records):
    card = GuardCard.read(directory)
    told = card.training["validation"]["categories"]
    assert tuple(told) == CATEGORIES
    assert {UNSAFE} | {key for key, each in told.items() if each["threshold"] is not None} == set(card.thresholds)
    assert 1 < len(card.thresholds) < 1 + len(CATEGORIES)
    probabilities = Guard.from_pretrained(directory).probabilities([r["text"] for r in records[:-5]])
    for column, (key, each) in enumerate(told.items(), start=1):
        has = np.array([key in (r["categories"] or ()) for r in records[:-5]])
        assert (each["positives"], each["negatives"]) == (has.sum(), (~has).sum())  # those of unknown ones left out
        if each["threshold"] is not None:
            assert card.thresholds[key] == each["threshold"] and each["fpr"] <= MAX_FPR
            assert (probabilities[~has, column] >= each["threshold"]).mean() == pytest.approx(each["fpr"], abs=0.02)


def test_thresholds_of_categories_change_no_decision(directory, records):
    guard = Guard.from_pretrained(directory)
    texts = [r["text"] for r in records]
    decided = [verdict.unsafe for verdict in guard.classify(texts)]
    assert {True, False} == set(decided)
    for value in (0.0, 2.0):
        guard.card = dataclasses.replace(
            guard.card, thresholds={**dict.fromkeys(CATEGORIES, value), UNSAFE: guard.card.thresholds[UNSAFE]}
        )
        assert [verdict.unsafe for verdict in guard.classify(texts)] == decided


def test_records_of_an_evaluation_set_are_refused(directory, tmp_path):
    records = [make_record(f"text {i}", unsafe=i % 2 == 0, source="xstest") for i in range(4)]
    with pytest.raises(FittedOnEvaluationSet, match="xstest is an evaluation set"):
        calibrated(directory, records)
    assert GuardCard.read(directory).version == "v"


@given(st.data())
@settings(max_examples=30)
def test_no_category_is_flagged_more_often_than_stated(data):
    count = data.draw(st.integers(1, 60))
    column, key = 3, CATEGORIES[3]
    labels = data.draw(st.lists(st.sampled_from([None, [], [key]]), min_size=count, max_size=count))
    probabilities = np.zeros((count, len(CATEGORIES)))
    probabilities[:, column] = data.draw(st.lists(st.floats(0, 1), min_size=count, max_size=count))
    told = category_thresholds(probabilities, labels, MAX_FPR)[key]
    assert (told["threshold"] is not None) == (told["positives"] >= 5 and told["negatives"] >= 10)
    if told["threshold"] is not None:
        benign = probabilities[[label == [] for label in labels], column]
        assert (benign >= told["threshold"]).mean() == told["fpr"] <= MAX_FPR


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=50))
def test_the_bins_are_those_of_the_calibration_error(pairs):
    unsafe, scores = np.array([each for each, _ in pairs]), np.array([each for _, each in pairs])
    bins = [each for each in reliability(unsafe, scores) if each["count"]]
    gap = sum(each["count"] * abs(each["share_unsafe"] - each["mean_score"]) for each in bins) / len(pairs)
    assert gap == pytest.approx(expected_calibration_error(unsafe, scores), abs=1e-9)

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.calibration import choose_threshold, fit_temperature
from guardrail.metrics import (
    binary_metrics,
    expected_calibration_error,
    metric_intervals,
    ranking_metrics,
    tagged_metrics,
    wilson,
)

#: A label, a score (many of them tied) and a decision that need not follow from it.
items = st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.2, 0.5, 0.7, 1.0]), st.booleans()), min_size=1)


def test_wilson_by_the_book():
    # 10 of 20 at 95%: 0.299 to 0.701 (Newcombe 1998, table I method 3)
    assert wilson(10, 20) == pytest.approx([0.2993, 0.7007], abs=1e-4)
    assert wilson(0, 0) is None


@given(st.integers(0, 50), st.integers(1, 50))
def test_the_interval_holds_the_share(successes, trials):
    successes = min(successes, trials)
    low, high = wilson(successes, trials)
    assert 0 <= low <= successes / trials + 1e-12 and successes / trials - 1e-12 <= high <= 1


@given(st.integers(0, 50), st.integers(1, 50), st.integers(2, 20))
def test_the_interval_is_narrower_with_more_of_the_same(successes, trials, times):
    few, many = wilson(min(successes, trials), trials), wilson(times * min(successes, trials), times * trials)
    assert many[1] - many[0] < few[1] - few[0]


@settings(max_examples=25)
@given(items, st.integers(0, 3))
def test_intervals_hold_their_metrics_and_are_absent_where_these_are(rows, seed):
    unsafe, scores, flagged = map(np.array, zip(*rows, strict=True))
    metrics = binary_metrics(unsafe, scores, None, flagged)
    intervals = metric_intervals(unsafe, scores, flagged, seed)
    assert intervals.keys() == metrics.keys() - {"n", "positives", "ece", "threshold"}
    for name, interval in intervals.items():
        assert (interval is None) == (metrics[name] is None), name
        if interval is not None:
            low, high = interval
            assert 0 <= low <= metrics[name] + 1e-12 and metrics[name] - 1e-12 <= high <= 1 + 1e-12, name
    assert intervals == metric_intervals(unsafe, scores, flagged, seed)


@settings(max_examples=50)
@given(items)
def test_what_is_resampled_is_what_scikit_learn_measures(rows):
    unsafe, scores, flagged = map(np.array, zip(*rows, strict=True))
    metrics = binary_metrics(unsafe, scores, None, flagged)
    if metrics["auroc"] is not None:
        values = np.unique(-scores)
        counts = ([(scores[of] == -value).sum() for value in values] for of in (unsafe, ~unsafe))
        (found,) = ranking_metrics(*(np.array([each]) for each in counts))
        assert found == pytest.approx([metrics[name] for name in ("auprc", "auroc", "recall_at_1pct_fpr")])


def test_bootstrap_intervals_are_narrower_with_more_data_and_as_wide_as_theory_has_it():
    random = np.random.default_rng(0)
    unsafe = np.arange(1600) % 2 == 0
    scores = random.normal(size=1600) + unsafe
    few, many = (metric_intervals(unsafe[:n], scores[:n], scores[:n] > 0.5, 0) for n in (100, 1600))
    for name in ("f1", "auprc", "auroc"):
        assert (many[name][1] - many[name][0]) / (few[name][1] - few[name][0]) == pytest.approx(0.25, abs=0.1), name
    # Hanley and McNeil (1982) for two normal distributions one apart, 800 of each: 0.76 with a standard error of 0.012
    low, high = many["auroc"]
    assert low < 0.76 < high and high - low == pytest.approx(2 * 1.96 * 0.012, rel=0.15)


def test_a_guard_without_threshold_is_measured_by_its_decisions():
    metrics = tagged_metrics([True, False], [0.1, 0.9], [["a"], None], None, [True, False], seed=0)
    assert metrics["f1"] == 1.0 and metrics["auroc"] == 0.0 and metrics["ece"] is metrics["threshold"] is None
    assert metrics["tags"]["a"]["intervals"]["recall"] == wilson(1, 1)
    with pytest.raises(ValueError, match="threshold or its decisions"):
        binary_metrics([True], [0.5], None)


def test_metrics_by_hand():
    metrics = binary_metrics([True, True, False, False], [0.9, 0.4, 0.6, 0.1], threshold=0.5)
    assert metrics["precision"] == metrics["recall"] == metrics["f1"] == 0.5
    assert metrics["fpr"] == 0.5 and metrics["auroc"] == 0.75
    assert metrics["recall_at_1pct_fpr"] == 0.5


def test_what_a_set_cannot_define_is_null():
    harmful = binary_metrics([True, True], [0.9, 0.2], 0.5)
    assert harmful["recall"] == 0.5 and harmful["f1"] is harmful["fpr"] is harmful["auroc"] is None
    benign = binary_metrics([False, False], [0.9, 0.2], 0.5)
    assert benign["fpr"] == 0.5 and benign["recall"] is None and benign["f1"] is None


def test_tags_split_a_set():
    tags = tagged_metrics([True, False, True], [0.9, 0.1, 0.2], [["a"], ["a"], None], 0.5)["tags"]
    assert list(tags) == ["a"] and tags["a"]["n"] == 2 and tags["a"]["f1"] == 1.0


def test_calibration_error_by_hand():
    assert expected_calibration_error(np.array([True, False]), np.array([0.99, 0.99])) == pytest.approx(0.49)


def test_temperature_undoes_overconfidence():
    random = np.random.default_rng(0)
    logits = random.normal(size=4000) * 2
    unsafe = random.random(4000) < 1 / (1 + np.exp(-logits))
    assert fit_temperature(logits * 3, unsafe) == pytest.approx(3.0, rel=0.1)


@pytest.mark.parametrize("count", [4, 30, 1000])
def test_labels_that_are_told_apart_are_as_certain_as_so_many_can_be(count):
    logits = np.concatenate([np.linspace(1, 3, count), np.linspace(-3, -1, count)])
    unsafe = np.arange(2 * count) < count
    scores = 1 / (1 + np.exp(-logits / fit_temperature(logits, unsafe)))
    assert 1 - scores.max() > 1e-9 and scores[unsafe].mean() == pytest.approx((count + 1) / (count + 2), abs=0.04)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.02, 0.2]))
def test_a_threshold_keeps_its_promise_on_false_positives(seed, max_fpr):
    random = np.random.default_rng(seed)
    unsafe = np.array([True, False] * 20)
    scores = random.random(40).round(1)
    threshold = choose_threshold(scores, unsafe, max_fpr)
    assert ((scores >= threshold) & ~unsafe).sum() <= max_fpr * 20
    lower = scores[scores < threshold]
    if lower.size:  # to flag one score more would break the promise
        assert ((scores >= lower.max()) & ~unsafe).sum() > max_fpr * 20


def test_a_threshold_needs_both_labels():
    with pytest.raises(ValueError, match="both safe and unsafe"):
        choose_threshold(np.array([0.5]), np.array([True]), 0.1)

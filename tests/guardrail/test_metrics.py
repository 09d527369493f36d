import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.calibration import choose_threshold, fit_temperature
from guardrail.metrics import binary_metrics, expected_calibration_error, tagged_metrics, wilson


def test_wilson_by_the_book():
    # 10 of 20 at 95%: 0.299 to 0.701 (Newcombe 1998, table I method 3)
    assert wilson(10, 20) == pytest.approx([0.2993, 0.7007], abs=1e-4)
    assert wilson(0, 0) is None


@given(st.integers(0, 50), st.integers(1, 50))
def test_the_interval_holds_the_share(successes, trials):
    successes = min(successes, trials)
    low, high = wilson(successes, trials)
    assert 0 <= low <= successes / trials + 1e-12 and successes / trials - 1e-12 <= high <= 1


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

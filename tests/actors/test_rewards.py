import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.config import RewardConfig
from actors.rewards import RewardParts, combined, evasion, novelty


def test_evasion_is_half_at_the_threshold_and_turns_with_the_label():
    unsafe = np.array([True, False, True, False])
    scores = evasion(np.array([0.3, 0.3, 0.9, 0.9]), np.array([True] * 4), unsafe, threshold=0.3)
    assert scores[:2].tolist() == [0.5, 0.5] and scores[2] < 0.2 and scores[3] > 0.8


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 0.99))
def test_evasion_rises_as_the_guard_errs_more(one, other, threshold):
    low, high = sorted((one, other))
    for unsafe in (True, False):
        scores = np.array([low, high])
        first, second = evasion(scores, scores >= threshold, np.array([unsafe, unsafe]), threshold)
        assert 0 < first < 1 and ((first >= second) if unsafe else (first <= second))


def test_a_decision_outweighs_the_scores_of_a_service_that_decides_otherwise():
    scores, unsafe = np.array([0.1, 0.1, 0.8]), np.array([True, True, False])
    assert evasion(scores, np.array([True, False, False]), unsafe, 0.5).tolist()[0] == 0.5
    assert evasion(scores, np.array([True, False, False]), unsafe, 0.5)[1] > 0.7
    assert evasion(scores, np.array([True, False, False]), unsafe, 0.5)[2] == 0.5


def test_novelty_is_the_distance_to_the_nearest_of_archive_and_group():
    x, y = [1.0, 0.0], [0.0, 1.0]
    embeddings = np.array([x, y, y, y])
    kept, nothing = np.ones(4, dtype=bool), np.zeros((0, 0))
    assert novelty(embeddings, nothing, kept, 2).tolist() == [1.0, 1.0, 0.0, 0.0]
    assert novelty(embeddings, np.array([x]), kept, 2).tolist() == [0.0, 1.0, 0.0, 0.0]
    assert novelty(embeddings, nothing, kept, 4).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert novelty(embeddings, np.array([y]), np.array([True, False, False, False]), 2).tolist() == [1.0, 0, 0, 0]
    assert novelty(embeddings, np.array([y]), ~kept, 2).tolist() == [0.0] * 4


unit = st.floats(0, 1)


def reward_of(kept, evaded, intent, near, new):
    parts = RewardParts(*(np.array([value]) for value in (kept, evaded, intent, near, new)))
    return combined(parts, RewardConfig())[0]


@given(unit, unit, unit, unit, unit)
def test_any_kept_label_earns_more_than_any_lost_one(evaded, intent, near, new, other):
    kept, lost = reward_of(True, evaded, intent, near, new), reward_of(False, other, intent, near, other)
    assert kept >= 0.4 > 0.1 + 1e-9 >= lost


def test_the_reward_by_hand():
    assert reward_of(True, 0.5, 0.9, 0.8, 0.2) == pytest.approx(0.4 + 0.3 + 0.03)
    assert reward_of(False, 0.5, 0.6, 0.7, 0.2) == pytest.approx(0.18 + 0.14 - 0.4)

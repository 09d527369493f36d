import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from actors.archive import Archive
from actors.rewards import combined, evasion, novelty


def test_evasion_is_the_probability_of_the_wrong_label():
    assert evasion(np.array([0.9, 0.9]), np.array([True, False])).round(6).tolist() == [0.1, 0.9]


def test_novelty_is_the_distance_to_the_nearest_of_archive_and_group():
    x, y = [1.0, 0.0], [0.0, 1.0]
    embeddings = np.array([x, y, y])
    groups = np.array([0, 0, 1])
    assert novelty(embeddings, np.zeros((0, 0)), groups).tolist() == [1.0, 1.0, 1.0]
    assert novelty(embeddings, np.array([y]), groups).tolist() == [1.0, 0.0, 0.0]
    assert novelty(np.array([x, x]), np.zeros((0, 0)), np.array([0, 0])).tolist() == [0.0, 0.0]


unit = st.floats(0, 1)


@given(st.booleans(), unit, st.floats(-1, 1), unit, st.floats(0, 0.5))
def test_the_reward_stays_in_its_range_and_any_kept_label_earns_more_than_any_lost_one(kept, evaded, near, new, weight):
    reward = combined(*(np.array([value]) for value in (kept, evaded, near, new)), weight)[0]
    assert (0.4 <= reward <= 1 + weight + 1e-9) if kept else (-0.5 - 1e-9 <= reward <= 0.1 + 1e-9)


def test_the_archive_forgets_the_oldest():
    archive = Archive(size=2)
    archive.add(np.eye(3, dtype=np.float32))
    assert archive.embeddings.tolist() == [[0, 1, 0], [0, 0, 1]]
    archive.add(np.zeros((0, 3), dtype=np.float32))
    assert len(archive.embeddings) == 2

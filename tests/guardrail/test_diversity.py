import numpy as np
import pytest

from guardrail.diversity import diversity, mean_distance, self_bleu, unique_clusters


def test_equal_texts_are_one_cluster_and_all_alike():
    same = np.tile([1.0, 0.0], (3, 1))
    assert diversity(["a b c d e"] * 3, same) == {
        "self_bleu": pytest.approx(1.0),
        "unique_clusters": 1,
        "mean_distance": pytest.approx(0.0),
    }


def test_unlike_texts_are_apart():
    assert unique_clusters(np.eye(4)) == 4
    assert mean_distance(np.eye(4)) == pytest.approx(1.0)
    assert self_bleu(["one two three four", "red green blue black"]) == pytest.approx(0.0, abs=0.01)


def test_too_few_texts_have_no_diversity():
    assert diversity([], np.zeros((0, 2))) == {"self_bleu": None, "unique_clusters": 0, "mean_distance": None}

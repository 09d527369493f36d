"""What an iteration and a round put on a TensorBoard; Ray's gauges get the same, where Ray runs."""

import dataclasses

import numpy as np
import pytest

from actors.adversary import Iteration
from actors.summary import Summary, Tally
from cluster import observability
from cluster.observability import record_iteration, record_round


class Board(dict):
    """Keeps the last value of each figure."""

    def add_scalar(self, name, value, step):
        self[name] = (value, step)

    def flush(self):
        """Nothing waits."""


def iteration(**counts):
    summary = Summary.of([Tally(**counts)], archive=2, coverage=0.5, weights_version=0, learnable=True)
    summary = dataclasses.replace(summary, diversity={"unique_clusters": 2, "self_bleu": None, "mean_distance": 0.4})
    return Iteration(summary, {"kl": 0.1}, {"probe_max_abs_logprob_diff": 1e-5}, {"generate": 2.0, "update": 4.0})


def test_an_iteration_shows_shares_parts_and_speed_by_phase():
    board = Board()
    record_iteration("run", iteration(attempts=8, valid=4, successes=1, tokens=40), 3, board)
    expected = {"iteration_yield": 1 / 8, "iteration_success_rate": 1 / 4, "learner/kl": 0.1, "archive_coverage": 0.5}
    expected |= {"iteration_unique_clusters": 2, "iteration_mean_distance": 0.4}
    expected |= {"tokens_per_second/generate": 20.0, "tokens_per_second/update": 10.0, "reward_part/fluency": 0.0}
    assert {name: board[name] for name in expected} == {name: (value, 3) for name, value in expected.items()}
    assert board["probe_max_abs_logprob_diff"] == (1e-5, 3) and "iteration_self_bleu" not in board


def test_a_reason_that_is_no_more_is_none_and_a_rate_of_nothing_is_not_shown():
    board = Board()
    record_iteration("run", iteration(attempts=2, rejected={"drift": 2}), 1, board)
    assert board["gate_rejections/drift"] == (2, 1) and "iteration_success_rate" not in board
    record_iteration("run", iteration(attempts=2, valid=2), 2, board)
    assert board["gate_rejections/drift"] == (0, 2)


@pytest.mark.parametrize("transforms", [None, {"tried": 8, "misjudged": 2}])
def test_a_round_shows_its_attacks_their_likeness_and_its_guard(transforms):
    attacks = {"attempts": 8, "valid": 4, "success_rate": 0.25, "yield": 0.125}
    attacks["diversity"] = {"unique_clusters": 1, "self_bleu": None, "mean_distance": 0.5}
    evaluation, phases = {"validation": {"f1": 0.8, "fpr": 0.04}}, {"train": {"seconds": 1.5}}
    board = Board()
    entry = {"round": 2, "attacks": attacks, "transforms": transforms, "evaluation": evaluation, "phases": phases}
    record_round("run", entry, board)
    expected = {"attack_success_rate": 0.25, "attack_mean_distance": 0.5, "guard_f1/validation": 0.8}
    expected |= {"phase_seconds/train": 1.5} | ({"transforms_misjudged": 0.25} if transforms else {})
    assert {name: board.get(name) for name in expected} == {name: (value, 2) for name, value in expected.items()}
    assert "attack_self_bleu" not in board and ("transforms_misjudged" in board) is bool(transforms)


def test_a_figure_that_is_none_any_more_is_not_shown_as_it_was(monkeypatch):
    """Attackers of which nothing is valid any more have no success rate, not the last good one."""
    gauges = {}

    class Kept:
        def __init__(self, name, **_):
            self.name = name

        def set(self, value, tags):
            gauges[self.name, *sorted(tags.values())] = value

    monkeypatch.setattr(observability, "Gauge", Kept)
    monkeypatch.setattr(observability, "_gauges", {})
    monkeypatch.setattr(observability.ray, "is_initialized", lambda: True)
    record_iteration("run", iteration(attempts=2, valid=2, successes=1), 1, Board())
    assert gauges["rayguard_iteration_success_rate", "run"] == 0.5 and gauges["rayguard_learner", "kl", "run"] == 0.1
    collapsed = iteration(attempts=2, rejected={"drift": 2})
    record_iteration("run", dataclasses.replace(collapsed, learner={}, sync={}), 2, Board())
    nothing = [("rayguard_iteration_success_rate", "run"), ("rayguard_learner", "kl", "run")]
    nothing += [("rayguard_probe_max_abs_logprob_diff", "run")]
    assert all(np.isnan(gauges[name]) for name in nothing)

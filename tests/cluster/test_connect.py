from contextlib import nullcontext
from unittest.mock import Mock

import pytest

from cluster import connect as connecting
from cluster.connect import connect
from cluster.observability import METRICS, record


def test_an_address_that_does_not_answer_says_what_to_do():
    wanted = "(?s)cannot reach the Ray cluster at '127.0.0.1:1'.*ray start --head"
    with pytest.raises(ConnectionError, match=wanted), connect(address="127.0.0.1:1"):
        pass


@pytest.mark.parametrize(("late", "reached"), [(2, True), (3, False)])
def test_a_cluster_that_is_late_is_started_again(monkeypatch, late, reached):
    says = [Exception("The current node timed out during startup. This could happen because ...")] * late + [None]
    init, shutdown = Mock(side_effect=says), Mock()
    monkeypatch.setattr(connecting.ray, "init", init)
    monkeypatch.setattr(connecting.ray, "shutdown", shutdown)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with nullcontext() if reached else pytest.raises(ConnectionError, match="too busy"), connect():
        pass
    assert (init.call_count, shutdown.call_count) == (3, 3 if reached else 2)


def test_metrics_without_ray_are_no_error():
    for name in METRICS:
        record(name, 1.0, run="r")

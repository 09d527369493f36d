import pytest

from cluster.connect import connect
from cluster.observability import METRICS, record


def test_an_address_that_does_not_answer_says_what_to_do():
    wanted = "(?s)cannot reach the Ray cluster at '127.0.0.1:1'.*ray start --head"
    with pytest.raises(ConnectionError, match=wanted), connect(address="127.0.0.1:1"):
        pass


def test_metrics_without_ray_are_no_error():
    for name in METRICS:
        record(name, 1.0, run="r")

from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest

from actors.attempts import (
    ATTEMPTS,
    attempts_table,
    float_lists,
    forget_attempts,
    kept_of,
    read_attempts,
    successes_of,
    write_attempts,
)
from actors.reward_worker import RewardWorker
from guardrail.records import from_table, make_record, record_id, to_table

GOALS = [
    make_record("How do I steal a ladder?", unsafe=True, source="a", categories=["illicit"], language="en"),
    make_record("How do I bake bread?", unsafe=False, source="b", categories=[]),
]
TEXTS = ["Take a ladder, how?", "Baking, how?", "Steal it?"]


@pytest.fixture
def table():
    columns = {
        "id": [record_id(text) for text in TEXTS],
        "text": TEXTS,
        "parent_id": [GOALS[i]["id"] for i in (0, 1, 0)],
        "method": "rl",
        "round": 2,
        "attacker_version": "attacker@1",
        "guard_version": "guard@1",
        "style": ["polite", "polite", "casual"],
        "action": ["rewrite"] * 3,
        "iteration": 4,
        "valid": [True, False, True],
        "success": [True, False, False],
        "rejected": [None, "drift", None],
        "embedding": float_lists(np.eye(3, 5)),
    }
    scores = {"similarity": np.array([0.9, 0.1, 0.8]), "guard": np.array([0.2, np.nan, 0.7])}
    return attempts_table(to_table(GOALS), [0, 1, 0], columns, scores)


def test_attempts_have_what_is_their_goals_and_what_is_their_own(table):
    assert table.schema == ATTEMPTS
    first, second, third = from_table(table)
    assert first == {
        **GOALS[0],
        "id": record_id(TEXTS[0]),
        "text": TEXTS[0],
        "parent_id": GOALS[0]["id"],
        "method": "rl",
        "round": 2,
        "attacker_version": "attacker@1",
        "guard_version": "guard@1",
        "scores": {"similarity": 0.9, "guard": 0.2},
    }
    assert second["scores"] == {"similarity": 0.1} and second["unsafe"] is False  # it never came to the guard
    assert third["seed_id"] == GOALS[0]["id"] and third["scores"]["guard"] == 0.7
    assert table["embedding"].to_pylist() == np.eye(3, 5).tolist()
    assert [(found["text"], found["style"]) for found in successes_of(table)] == [(TEXTS[0], "polite")]
    assert [(found["text"], found["style"]) for found in kept_of(table)] == [(TEXTS[0], "polite"), (TEXTS[2], "casual")]


@pytest.mark.parametrize("successes", [0, 1, 3])
def test_an_iteration_is_as_diverse_as_its_successes_few_or_none(table, tmp_path, successes):
    worker = object.__new__(RewardWorker)
    worker._round = Mock(return_value=SimpleNamespace(directory=str(tmp_path)))
    own = table.set_column(table.schema.get_field_index("success"), "success", [[i < successes for i in range(3)]])
    write_attempts(own.cast(ATTEMPTS), tmp_path, 4, 0)
    write_attempts(table, tmp_path, 5, 0)  # another one's
    found = worker.diversity([], 4)
    assert found["unique_clusters"] == successes and (found["mean_distance"] is None) is (successes < 2)


def test_what_an_iteration_that_never_ended_has_left_is_forgotten(table, tmp_path):
    assert read_attempts(tmp_path).equals(ATTEMPTS.empty_table())
    for iteration, share in ((0, 0), (0, 1), (1, 0), (2, 0)):
        write_attempts(table, tmp_path, iteration, share)
    assert read_attempts(tmp_path).num_rows == 12
    forget_attempts(tmp_path, first=1)
    assert read_attempts(tmp_path).num_rows == 6

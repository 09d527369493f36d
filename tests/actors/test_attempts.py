from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.archive import Archive
from actors.attempts import (
    ATTEMPTS,
    attempts_table,
    float_lists,
    forget_attempts,
    kept_of,
    left_successes,
    merge_attempts,
    read_attempts,
    read_successes,
    stored_attacks,
    successes_of,
    write_attempts,
)
from actors.config import AdversaryConfig
from actors.reward_worker import RewardWorker, Scored
from actors.summary import Tally
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


def test_what_an_iteration_that_never_ended_has_left_counts_no_more(table, tmp_path):
    assert read_attempts(tmp_path).equals(ATTEMPTS.empty_table())
    for iteration, share in ((0, 0), (0, 1), (1, 0), (2, 0)):
        write_attempts(table, tmp_path, iteration, share)
    assert read_attempts(tmp_path).num_rows == 12
    forget_attempts(tmp_path, first=1)
    assert (read_attempts(tmp_path).num_rows, read_successes(tmp_path).num_rows) == (6, 2)


def written(table, text):
    """Return the attempts with another text in the place of the success's."""
    texts = [text, *TEXTS[1:]]
    for name, values in (("text", texts), ("id", [record_id(each) for each in texts])):
        table = table.set_column(table.schema.get_field_index(name), ATTEMPTS.field(name), pa.array(values))
    return table


def test_its_successes_stay_for_whoever_wants_all_however_often_it_is_killed(table, tmp_path):
    for text in ("first", "second", "first", "again"):  # the same share of the same iteration each time
        write_attempts(written(table, text), tmp_path, 4, 0)
        forget_attempts(tmp_path, first=4)
    write_attempts(written(table, "of another"), tmp_path, 5, 0)
    forget_attempts(tmp_path, first=4)
    write_attempts(written(table, "again"), tmp_path, 4, 0)
    left = left_successes(tmp_path)
    assert sorted(left["text"].to_pylist()) == ["first", "of another", "second"]  # each once, "again" was found again
    assert left.schema == ATTEMPTS and left["iteration"].null_count == 3
    assert sorted(left_successes(tmp_path, 4)["text"].to_pylist()) == ["first", "second"]
    assert read_attempts(tmp_path).equals(written(table, "again"))

    merge_attempts(tmp_path, tmp_path / "attacks.parquet")
    attacks = pq.read_table(tmp_path / "attacks.parquet")
    assert attacks.schema.names == ATTEMPTS.names[:-1] and attacks.num_rows == 3 + 3
    assert attacks["iteration"].to_pylist() == [4] * 3 + [None] * 3
    assert {each["text"] for each in stored_attacks([attacks])} == {"again", "first", "of another", "second"}
    assert len(kept_of(attacks)) == 4 + 1


def test_where_all_is_found_again_nothing_is_left(table, tmp_path):
    write_attempts(written(table, "first"), tmp_path, 4, 0)
    forget_attempts(tmp_path, first=4)
    write_attempts(written(table, "first"), tmp_path, 4, 0)
    assert left_successes(tmp_path, 4).equals(ATTEMPTS.empty_table())


@pytest.mark.parametrize("moved", range(4))
def test_a_kill_in_the_middle_of_forgetting_loses_and_doubles_nothing(table, tmp_path, monkeypatch, moved):
    for share in range(3):
        write_attempts(written(table, f"of {share}"), tmp_path, 4, share)
    rename, renamed = Path.rename, []

    def rename_or_die(old, new):
        if len(renamed) == moved:
            raise KeyboardInterrupt
        renamed.append(rename(old, new))

    monkeypatch.setattr(Path, "rename", rename_or_die)
    with pytest.raises(KeyboardInterrupt):
        forget_attempts(tmp_path, first=4)
        raise KeyboardInterrupt  # the moment after
    monkeypatch.undo()
    assert len(read_successes(tmp_path)) + len(left_successes(tmp_path)) == 3
    forget_attempts(tmp_path, first=4)
    assert sorted(left_successes(tmp_path)["text"].to_pylist()) == ["of 0", "of 1", "of 2"]


def test_the_archive_has_what_an_iteration_found_each_time_it_ran(table, tmp_path):
    worker = object.__new__(RewardWorker)
    worker._round = Mock(
        return_value=SimpleNamespace(index=2, directory=str(tmp_path), earlier=[], goals=GOALS),
    )
    worker.config, worker._archive = AdversaryConfig(), None
    for iteration, text in ((4, "lost"), (5, "later")):
        write_attempts(written(table, text), tmp_path, iteration, 0)
    forget_attempts(tmp_path, first=4)
    summary, embeddings, _ = worker.finish([], 4, 1, 0, Scored({}, {}, Tally()))
    assert (summary.archive, summary.successes, embeddings.tolist()) == (1, 0, [[1, 0, 0, 0, 0]])
    cells = Archive.load(tmp_path / "archive-0005.parquet", 9).cells
    assert {cell: [find.text for find in finds] for cell, finds in cells.items()} == {("illicit", "polite"): ["lost"]}
    assert summary.coverage > 0
    assert worker.finish([], 5, 1, 0, Scored({}, {}, Tally()))[0].archive == 2


@pytest.mark.parametrize(("benign_share", "coverage"), [(0.3, 0.5), (0.0, 1.0)])
def test_cells_that_no_attempt_can_fill_are_not_to_be_covered(table, tmp_path, benign_share, coverage):
    worker = object.__new__(RewardWorker)
    worker._round = Mock(
        return_value=SimpleNamespace(index=2, directory=str(tmp_path), earlier=[], goals=GOALS),
    )
    worker.config, worker._archive = AdversaryConfig(benign_share=benign_share, styles=["polite"]), None
    write_attempts(table, tmp_path, 4, 0)
    forget_attempts(tmp_path, first=4)
    assert worker.finish([], 4, 1, 0, Scored({}, {}, Tally()))[0].coverage == coverage

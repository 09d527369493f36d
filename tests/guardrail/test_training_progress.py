"""What is told of a training while it runs."""

from guardrail.training_progress import progress_told, write_progress
from tests.waiting import until


def test_what_is_written_is_told_and_nothing_twice(tmp_path):
    path, told = tmp_path / "progress.json", list[tuple[int, int, float]]()
    with progress_told(path, lambda *news: told.append(news), seconds=0.001):
        for done in (10, 20):
            write_progress(path, done, 30, 0.5)
            until(lambda done=done: told and told[-1][0] == done, "it is told")
    assert told == [(10, 30, 0.5), (20, 30, 0.5)]
    write_progress(path, 30, 30, 0.5)
    assert len(told) == 2


def test_where_nobody_wants_to_know_nothing_is_read(tmp_path):
    with progress_told(tmp_path / "none.json", None):
        pass

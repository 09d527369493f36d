"""What may wait: pace, refusal, and when to try again."""

import contextlib

import pytest

from serve.admission import Admission, Budgets, OverBudget, Overloaded, TooMuch
from serve.keys import Key


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def admission(clock: Clock) -> Admission:
    """One that knows: a unit takes 0.1 s, an answer may take 10 s."""
    admission = Admission(10.0, clock)
    with admission.at_work(20):
        clock.now += 2.0
    return admission


def test_work_is_refused_once_what_waits_takes_half_the_deadline(admission: Admission) -> None:
    with admission.admitted(50):
        with admission.admitted(30):
            with pytest.raises(Overloaded) as refused, admission.admitted(1):
                pass
            assert refused.value.retry_after == 3
        with admission.admitted(1):
            pass  # what was done waits no longer


def test_a_request_that_is_alone_is_refused_only_if_it_can_never_be_answered_in_time(admission: Admission) -> None:
    with admission.admitted(100):
        pass
    with pytest.raises(TooMuch) as refused, admission.admitted(400):
        pass
    assert refused.value.share == 25


def test_work_counts_until_it_is_done_also_when_nobody_waits_for_it_any_more(admission: Admission) -> None:
    with admission.at_work(60), pytest.raises(Overloaded), admission.admitted(1):
        pass
    with admission.admitted(1):
        pass


def test_before_the_first_batch_nothing_is_known_and_all_may_wait() -> None:
    admission = Admission(10.0)
    with admission.admitted(10_000), admission.admitted(1):
        pass


def test_a_failed_request_waits_no_longer(admission: Admission) -> None:
    with pytest.raises(ValueError, match="broken"), admission.admitted(100):
        raise ValueError("broken")
    with admission.admitted(1):
        pass


def test_the_pace_follows_the_machine(admission: Admission, clock: Clock) -> None:
    for _ in range(30):
        with admission.at_work(20):
            clock.now += 20.0
    with admission.admitted(6), pytest.raises(Overloaded), admission.admitted(1):
        pass


def test_small_batches_do_not_have_a_large_request_refused(clock: Clock) -> None:
    admission = Admission(10.0, clock)
    for _ in range(30):
        with admission.at_work(1):
            clock.now += 0.05  # nearly all of which a batch of a hundred takes, too
    with admission.admitted(1_000):
        pass


def test_nor_do_they_have_one_admitted_that_cannot_be_answered(admission: Admission, clock: Clock) -> None:
    for _ in range(30):
        with admission.at_work(1):
            clock.now += 0.1  # as in fuller batches
    with pytest.raises(TooMuch), admission.admitted(400):
        pass


def test_a_pace_that_refuses_everything_is_forgotten(clock: Clock) -> None:
    admission = Admission(10.0, clock)
    with admission.at_work(20):
        clock.now += 1600.0  # the machine stood still
    with admission.admitted(1), pytest.raises(Overloaded), admission.admitted(1):
        pass
    clock.now += 60.0
    for _ in range(2):
        with admission.admitted(1), admission.at_work(20):
            clock.now += 2.0
        with admission.admitted(1), admission.admitted(1):
            pass  # nor does one fast batch bring it back


def test_a_large_request_is_not_tried_on_a_pace_that_was_forgotten(admission: Admission, clock: Clock) -> None:
    clock.now += 600.0
    with pytest.raises(TooMuch), admission.admitted(400):
        pass
    with admission.admitted(60):
        pass


def test_nothing_is_put_behind_a_batch_that_is_slower_than_any_before(admission: Admission, clock: Clock) -> None:
    with admission.at_work(20):
        clock.now += 6.0
        with pytest.raises(Overloaded), admission.admitted(1):
            pass


@pytest.mark.parametrize("units", [1, 64])
def test_while_a_batch_hangs_others_are_to_come_later_whatever_they_are(
    admission: Admission, clock: Clock, units: int
) -> None:
    with admission.at_work(1):
        clock.now += 200.0
        with pytest.raises(Overloaded) as refused, admission.admitted(units):
            pass
        assert refused.value.retry_after == 10  # the deadline, at most


def test_a_batch_that_fails_tells_nothing_of_the_pace(admission: Admission, clock: Clock) -> None:
    clock.now += 10.0  # in which half of the pace is forgotten, and no more of it by failures
    for _ in range(30):
        with contextlib.suppress(RuntimeError), admission.at_work(20):
            clock.now += 0.001
            raise RuntimeError
    with pytest.raises(TooMuch), admission.admitted(400):
        pass


def test_a_batch_that_does_not_end_shows(admission: Admission, clock: Clock) -> None:
    assert admission.computing == 0.0
    with admission.at_work(1):
        clock.now += 90.0
        assert admission.computing == 90.0
    assert admission.computing == 0.0


def test_a_key_that_has_spent_its_tokens_waits_until_it_has_some_again(clock: Clock) -> None:
    budgets, key = Budgets(clock), Key("app", "0" * 64, tokens_per_minute=60)
    budgets.check(key)
    budgets.spend(key, 90)  # what a request costs is known when it has been read
    with pytest.raises(OverBudget) as over:
        budgets.check(key)
    assert over.value.retry_after == 31
    clock.now += 31
    budgets.check(key)
    clock.now += 3600
    budgets.spend(key, 60)  # no more than a minute's is saved
    with pytest.raises(OverBudget):
        budgets.check(key)
    budgets.check(Key("other", "1" * 64))
    budgets.check(None)


def test_replicas_share_a_keys_tokens(clock: Clock) -> None:
    budgets, key = Budgets(clock), Key("app", "0" * 64, tokens_per_minute=60)
    budgets.replicas = 2
    budgets.spend(key, 30)
    with pytest.raises(OverBudget) as over:
        budgets.check(key)
    assert over.value.retry_after == 2
    clock.now += 2
    budgets.check(key)


def test_of_several_stages_the_slowest_sets_the_pace(clock: Clock) -> None:
    admission = Admission(10.0, clock, stages=2)
    for stage, seconds in ((0, 0.2), (1, 2.0)):
        with admission.at_work(20, stage):
            clock.now += seconds
    with admission.admitted(60), pytest.raises(Overloaded), admission.admitted(1):
        pass  # 60 units at 0.1 s: more than half the deadline
    with pytest.raises(TooMuch), admission.admitted(95):
        pass  # alone it goes through both
    with admission.at_work(1, 0), admission.at_work(1, 1):
        clock.now += 3.0
        assert admission.computing == 3.0

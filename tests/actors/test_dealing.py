"""How what the runners made is dealt out to scorers."""

from hypothesis import given
from hypothesis import strategies as st

from actors.rollouts import dealt


@given(st.lists(st.integers(), unique=True, max_size=70), st.integers(1, 9))
def test_all_is_dealt_out_in_order_and_nobody_gets_more_than_a_share(waiting, workers):
    parts = dealt(waiting, workers)
    assert [runner for part in parts for runner in part] == waiting
    assert len(parts) <= workers and all(1 <= len(part) <= -(-len(waiting) // workers) for part in parts)


def test_the_first_scorer_that_is_free_does_not_take_everything():
    assert len(dealt(range(56), 8)[0]) == 7

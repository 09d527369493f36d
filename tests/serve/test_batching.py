"""What waits is computed together, each gets its own result, and what nobody waits for is not computed."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.batching import Batcher


class Squares:
    """Computes squares, one batch at a time, and remembers the batches; fails on negative numbers."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.at_work = 0

    async def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.at_work += 1
        assert self.at_work == 1
        self.batches.append(list(numbers))
        await asyncio.sleep(0)
        self.at_work -= 1
        if min(numbers) < 0:
            raise ValueError("negative")
        return [number**2 for number in numbers]


@given(st.lists(st.integers(1, 20), max_size=60), st.integers(1, 30))
def test_each_gets_its_own_result_from_batches_within_the_bound(numbers: list[int], most: int) -> None:
    squares = Squares()

    async def ask() -> list[int]:
        batcher = Batcher(squares, lambda number: number, most)
        return await asyncio.gather(*(batcher.submit(number) for number in numbers))

    assert asyncio.run(ask()) == [number**2 for number in numbers]
    assert [number for batch in squares.batches for number in batch] == numbers
    assert all(sum(batch) <= most or len(batch) == 1 for batch in squares.batches)
    assert all(sum(one) + two[0] > most for one, two in zip(squares.batches, squares.batches[1:], strict=False))


def test_what_comes_while_it_works_waits_for_the_next_batch_and_what_was_given_up_is_left_out() -> None:
    squares = Squares()

    async def ask() -> list[int | BaseException]:
        batcher = Batcher(squares, lambda number: 1, 64)
        first = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # it is at work
        later = [asyncio.create_task(batcher.submit(number)) for number in (2, 3, 4)]
        await asyncio.sleep(0)
        later[1].cancel()
        return await asyncio.gather(first, *later, return_exceptions=True)

    one, two, three, four = asyncio.run(ask())
    assert (one, two, four) == (1, 4, 16) and isinstance(three, asyncio.CancelledError)
    assert squares.batches == [[1], [2, 4]]


def test_a_failure_is_that_of_its_item_alone() -> None:
    async def ask() -> int:
        batcher = Batcher(Squares(), lambda number: 1, 64)
        failed, fine = await asyncio.gather(batcher.submit(-1), batcher.submit(2), return_exceptions=True)
        assert isinstance(failed, ValueError) and fine == 4
        return await batcher.submit(3)

    assert asyncio.run(ask()) == 9
    with pytest.raises(ValueError, match="negative"):
        asyncio.run(Batcher(Squares(), lambda number: 1, 64).submit(-1))

"""Items of any lengths in batches of so many tokens, padding included."""

from collections.abc import Iterable, Sequence


def token_batches(order: Iterable[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Cut `order` into consecutive batches of at most `budget` tokens, padding to the longest included.

    A single item longer than the budget gets a batch of its own.

    Args:
        order: indices of items.
        lengths: tokens of each item.
        budget: tokens of a batch.
    """
    batches: list[list[int]] = []
    longest = 0
    for index in order:
        longest = max(longest, lengths[index])
        if not batches or longest * (len(batches[-1]) + 1) > budget:
            batches.append([])
            longest = lengths[index]
        batches[-1].append(index)
    return batches


def cheapest_batches(lengths: Sequence[int], budget: int, call: int) -> list[list[int]]:
    """Cut items into batches that cost least: the tokens of each, padding included, and `call` for each.

    Those of a batch are about as long, and at most `budget` tokens; a single item longer than that gets its own.

    Args:
        lengths: tokens of each item, at least 1.
        budget: tokens of a batch, padding to the longest included.
        call: tokens that a batch costs beside its own.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    cost, first = [0.0], [0]  # of the cheapest batches of the shortest items, and where the last of these begins
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        begins = range(max(0, end - max(1, budget // longest)), end)
        least, begin = min((cost[begin] + (end - begin) * longest + call, begin) for begin in begins)
        cost.append(least)
        first.append(begin)
    batches, end = [], len(order)
    while end:
        batches.append(order[first[end] : end])
        end = first[end]
    return batches[::-1]

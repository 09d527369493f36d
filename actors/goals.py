"""What is attacked with: the goals of a round that may and can be used, drawn by category without favouring a topic."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from actors.archive import BENIGN, UNKNOWN, category_of
from actors.styles import Style
from guardrail.generable import generation_seeds
from guardrail.records import Record


def _alike(categories: Sequence[str]) -> np.ndarray:
    return np.full(len(categories), 1 / len(categories))


def _dealt(count: int, random: np.random.Generator, shares: np.ndarray) -> np.ndarray:
    """Return whole numbers that sum to `count`, each within one of its share; chance decides about fractions alone."""
    order = random.permutation(len(shares))  # else neighbours would hardly ever both be dealt one
    upto = np.append(0.0, np.cumsum(shares[order]) * count) + random.random()
    upto[-1] = upto[0] + count  # whatever the shares' sum was rounded to
    result = np.empty(len(shares), dtype=int)
    result[order] = np.diff(np.floor(upto).astype(int))
    return result


class Goals:
    """The goals of a round.

    Args:
        records: to attack with.
        styles: that each goal must be able to be shown in.
        count_tokens: of a prompt.
        max_prompt_tokens: longest prompt.
        benign_share: of a draw, in [0, 1].

    Attributes:
        records: those that can be used.
        categories: of harm that these are of, sorted.
        left_out: how many cannot, by reason.

    Raises:
        ValueError: none of one of the labels can be used.
    """

    def __init__(
        self,
        records: Sequence[Record],
        styles: Sequence[Style],
        count_tokens: Callable[[str], int],
        max_prompt_tokens: int,
        benign_share: float,
    ) -> None:
        allowed = generation_seeds(records)
        self.records = [
            goal
            for goal in allowed
            if all(count_tokens(style.prompt(goal["text"])) <= max_prompt_tokens for style in styles)
        ]
        self.left_out = {
            "not to be generated from": len(records) - len(allowed),
            "too long for adversary.max_prompt_tokens": len(allowed) - len(self.records),
        }
        self._benign_share = benign_share
        self._of_category: dict[str, list[int]] = {}
        for i, goal in enumerate(self.records):
            self._of_category.setdefault(category_of(goal), []).append(i)
        self.categories = sorted(self._of_category.keys() - {BENIGN})
        benign = len(self._of_category.get(BENIGN, []))
        if not self.categories or (not benign and benign_share > 0):
            raise ValueError(
                f"the adversary needs unsafe and benign goals: {len(self.records) - benign} and {benign} of "
                f"{len(records)} can be used ({_listed(self.left_out)})"
            )

    def draw(
        self, count: int, random: np.random.Generator, weigh: Callable[[Sequence[str]], np.ndarray] = _alike
    ) -> list[int]:
        """Return `count` places in `records`, the benign share of them benign.

        Args:
            count: of groups.
            random: decides.
            weigh: gives the shares of some harm categories, which sum to one; by default all are alike.
        """
        benign = round(count * self._benign_share)
        counts = self._counts(count - benign, random, weigh(self.categories))
        drawn = [
            place
            for category, share in zip(self.categories, counts, strict=True)
            for place in self._balanced(category, int(share), random)
        ]
        return drawn + self._balanced(BENIGN, benign, random)

    def _counts(self, count: int, random: np.random.Generator, weights: np.ndarray) -> np.ndarray:
        """Return how many goals of each category are drawn; none is repeated before all of all were drawn."""
        sizes = np.array([len(self._of_category[category]) for category in self.categories])
        if UNKNOWN in self.categories:  # no category, but of any: it has as much as it is of the goals
            unknown = np.array(self.categories) == UNKNOWN
            share = float(sizes[unknown].sum() / sizes.sum())
            known = np.where(unknown, 0.0, weights)
            weights = np.where(unknown, share, known * (1 - share) / max(float(known.sum()), 1e-9))
        counts, most = np.zeros_like(sizes), sizes
        while (left := count - int(counts.sum())) > 0:
            room = most - counts
            if not room.any():
                most = most + sizes
                continue
            shares = np.where(room > 0, weights, 0.0)
            counts = counts + np.minimum(_dealt(left, random, shares / shares.sum()), room)
        return counts

    def _balanced(self, category: str, count: int, random: np.random.Generator) -> list[int]:
        """Draw goals of a category so that each topic weighs the same, repeating none before all were drawn."""
        drawn: list[int] = []
        queues: list[list[int]] = []
        while len(drawn) < count:
            if not (ready := [queue for queue in queues if queue]):
                queues = ready = self._by_topic(category, random)
            drawn += [queue.pop() for queue in ready[: count - len(drawn)]]
        return drawn

    def _by_topic(self, category: str, random: np.random.Generator) -> list[list[int]]:
        """Return the places of a category's goals, a list for each topic, all in random order."""
        by_topic: dict[str, list[int]] = {}
        for index in random.permutation(self._of_category[category]):
            by_topic.setdefault(self.records[index]["source"], []).append(int(index))
        queues = [by_topic[topic] for topic in sorted(by_topic)]
        random.shuffle(queues)
        return queues


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items() if count) or "none was left out"

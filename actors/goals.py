"""What is attacked with: the goals of a round that may and can be used, and a draw that favours no topic."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from actors.styles import Style
from guardrail.generable import generation_seeds
from guardrail.records import Record


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
        self._of_label = {
            label: [i for i, goal in enumerate(self.records) if goal["unsafe"] is label] for label in (True, False)
        }
        if not self._of_label[True] or (not self._of_label[False] and benign_share > 0):
            raise ValueError(
                f"the adversary needs unsafe and benign goals: {len(self._of_label[True])} and "
                f"{len(self._of_label[False])} of {len(records)} can be used ({_listed(self.left_out)})"
            )

    def draw(self, count: int, random: np.random.Generator) -> list[int]:
        """Return `count` places in `records`, the benign share of them benign."""
        benign = round(count * self._benign_share)
        return self._balanced(True, count - benign, random) + self._balanced(False, benign, random)

    def _balanced(self, unsafe: bool, count: int, random: np.random.Generator) -> list[int]:
        """Draw goals of a label so that each topic weighs the same, repeating none before all were drawn."""
        drawn: list[int] = []
        queues: list[list[int]] = []
        while len(drawn) < count:
            if not (ready := [queue for queue in queues if queue]):
                queues = ready = self._by_topic(unsafe, random)
            drawn += [queue.pop() for queue in ready[: count - len(drawn)]]
        return drawn

    def _by_topic(self, unsafe: bool, random: np.random.Generator) -> list[list[int]]:
        """Return the places of a label's goals, a list for each topic, all in random order."""
        by_topic: dict[str, list[int]] = {}
        for index in random.permutation(self._of_label[unsafe]):
            by_topic.setdefault(self.records[index]["source"], []).append(int(index))
        queues = [by_topic[topic] for topic in sorted(by_topic)]
        random.shuffle(queues)
        return queues


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items() if count) or "none was left out"

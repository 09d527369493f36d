"""What a group asks for and in which style: what works against this guard, a floor for all, harder where it fails.

A category's share of the groups goes by its yield, successes of all attempts. So does a style's share of a
category. A cell is a category and a style; its yield is smoothed towards the style's own and towards all. A saturated
cell hands its share on to the harder styles of its category: one whose valid attempts the guard sees through. Where
attempts are not valid it is the attacker that fails, and harder styles are no help. Disguised styles, the hardest, live
on such shares: a guard that cannot read a script would otherwise have attackers learn nothing about words.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from actors.config import CurriculumConfig
from actors.styles import LEVELS, STYLES, Style

_PSEUDO_ATTEMPTS = 8.0  # how much a cell's parent (its style, its level, or all) weighs in its estimate
_PRIOR = 0.1  # of yield, and of success rate


@dataclasses.dataclass
class _Count:
    attempts: float = 0.0
    valid: float = 0.0
    successes: float = 0.0


class Curriculum:
    """Counts by cell, and the draw that they decide."""

    def __init__(self, config: CurriculumConfig, styles: Sequence[Style] = STYLES) -> None:
        self.config = config
        self.styles = styles
        self._counts: dict[tuple[str, str], _Count] = {}

    def record(self, category: str, style: str, attempts: int, valid: int, successes: int) -> None:
        """Count attempts in a cell, how many of them were valid, and how many of these fooled the guard."""
        count = self._counts.setdefault((category, style), _Count())
        count.attempts += attempts
        count.valid += valid
        count.successes += successes

    def new_guard(self) -> None:
        """Let what was counted against the last guard weigh less against the next."""
        for count in self._counts.values():
            count.attempts *= self.config.memory
            count.valid *= self.config.memory
            count.successes *= self.config.memory

    def weights(self, category: str) -> np.ndarray:
        """Return the probability of each style for a category, [styles]; each at least floor / styles."""
        estimates = np.array([self._estimate(category, style.name) for style in self.styles])
        plain = np.array([not style.transforms for style in self.styles])
        share = np.where(plain | ~plain.any(), estimates, 0.0)
        share /= share.sum()
        for level in range(LEVELS - 1):
            above = [style.level for style in self.styles if style.level > level]
            harder = [i for i, style in enumerate(self.styles) if above and style.level == min(above)]
            for i, style in enumerate(self.styles):
                if harder and style.level == level and self._saturated(category, style):
                    share[harder] += share[i] / len(harder)
                    share[i] = 0.0
        return self.config.floor / len(self.styles) + (1 - self.config.floor) * share

    def category_weights(self, categories: Sequence[str]) -> np.ndarray:
        """Return the share of goals that each category gets, [categories]; each at least floor / categories."""
        attempts, successes = (
            [sum(getattr(count, name) for (of, _), count in self._counts.items() if of == each) for each in categories]
            for name in ("attempts", "successes")
        )
        overall = _smoothed(sum(attempts), sum(successes), _PRIOR)
        estimates = np.array([_smoothed(*counts, overall) for counts in zip(attempts, successes, strict=True)])
        return self.config.floor / len(categories) + (1 - self.config.floor) * estimates / estimates.sum()

    def draw(self, categories: Sequence[str], random: np.random.Generator) -> list[Style]:
        """Return a style for each of the categories, by its weights.

        The draws are spread (systematic sampling): an iteration has few groups, and drawn each by itself they would now
        and then be nearly all framed, or none.
        """
        bounds = {category: np.cumsum(self.weights(category)) for category in set(categories)}
        places = (random.permutation(len(categories)) + random.random(len(categories))) / max(1, len(categories))
        return [
            self.styles[min(int(np.searchsorted(bounds[each], place, side="right")), len(self.styles) - 1)]
            for each, place in zip(categories, places, strict=True)
        ]

    def _estimate(self, category: str, style: str) -> float:
        """Return the smoothed yield of a cell, in (0, 1)."""
        everywhere, cell = self._sum([style]), self._counts.get((category, style), _Count())
        of_style = _smoothed(everywhere.attempts, everywhere.successes, _PRIOR)
        return _smoothed(cell.attempts, cell.successes, of_style)

    def _saturated(self, category: str, style: Style) -> bool:
        """Whether the guard sees through a cell, by its success rate, smoothed towards its style's and its level's."""
        of_level = self._sum([other.name for other in self.styles if other.level == style.level])
        if of_level.valid < self.config.min_valid:
            return False
        rate = _PRIOR
        for count in (of_level, self._sum([style.name]), self._counts.get((category, style.name), _Count())):
            rate = _smoothed(count.valid, count.successes, rate)
        return rate < self.config.saturated

    def _sum(self, styles: Sequence[str]) -> _Count:
        """Return the counts of some styles in all categories."""
        counts = [count for (_, name), count in self._counts.items() if name in styles]
        return _Count(*(sum(getattr(count, field.name) for count in counts) for field in dataclasses.fields(_Count)))

    def get_state(self) -> list[list[Any]]:
        """Return the counts, as JSON has it."""
        return [[*cell, *dataclasses.astuple(count)] for cell, count in self._counts.items()]

    def set_state(self, state: Sequence[Sequence[Any]]) -> None:
        """Take over counts that `get_state` returned."""
        self._counts = {(row[0], row[1]): _Count(*row[2:]) for row in state}


def _smoothed(attempts: float, successes: float, parent: float) -> float:
    return (successes + _PSEUDO_ATTEMPTS * parent) / (attempts + _PSEUDO_ATTEMPTS)

"""An iteration in numbers: what each reward worker counts of its share, and their sum."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

#: What is logged of the reward: its parts, fluency, which only gates, and the whole. Evasion and novelty are over the
#: kept attempts, fluency (Min-K, a log-probability) over those it was measured of, the others over all.
PARTS = ("kept", "evasion", "intent", "similarity", "novelty", "fluency", "reward")


@dataclasses.dataclass
class Tally:
    """Counts of some attempts.

    Attributes:
        attempts, valid, successes: counts.
        read: attempts whose fluency was measured.
        tokens: generated.
        rejected: count by reason.
        cells: (category, style) to [attempts, valid, successes].
        sums: of each of `PARTS`.
        versions: sum of the versions of the weights that were sampled with.
    """

    attempts: int = 0
    valid: int = 0
    successes: int = 0
    read: int = 0
    tokens: int = 0
    rejected: Counter[str] = dataclasses.field(default_factory=Counter)
    cells: dict[tuple[str, str], list[int]] = dataclasses.field(default_factory=dict)
    sums: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    versions: int = 0

    def add(self, other: "Tally") -> None:
        """Count what another tally counted, too."""
        for name in ("attempts", "valid", "successes", "read", "tokens", "versions"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.rejected.update(other.rejected)
        for name in PARTS:
            self.sums[name] += other.sums[name]
        for cell, counts in other.cells.items():
            self.add_to_cell(cell, *counts)

    def add_to_cell(self, cell: tuple[str, str], attempts: int, valid: int, successes: int) -> None:
        """Count attempts in a cell."""
        before = self.cells.get(cell, (0, 0, 0))
        self.cells[cell] = [n + more for n, more in zip(before, (attempts, valid, successes), strict=True)]


@dataclasses.dataclass(frozen=True)
class Summary:
    """An iteration in numbers; its size hangs on the catalogue of styles alone, not on how much was attempted.

    Attributes:
        attempts, valid, successes: counts.
        tokens: generated.
        rejected: count by reason.
        cells: (category, style) to (attempts, valid, successes).
        parts: mean of each of `PARTS`.
        archive: finds in it.
        coverage: share of its cells that hold one.
        staleness: how many updates older than the learner's the sampling weights were, on average.
        learnable: whether there is a batch to learn from.
        diversity: of the successes, as `guardrail.diversity.diversity` has it.
    """

    attempts: int
    valid: int
    successes: int
    tokens: int
    rejected: dict[str, int]
    cells: dict[tuple[str, str], tuple[int, int, int]]
    parts: dict[str, float]
    archive: int
    coverage: float
    staleness: float
    learnable: bool
    diversity: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls, tallies: Sequence[Tally], *, archive: int, coverage: float, weights_version: int, learnable: bool
    ) -> "Summary":
        """Return the sum of tallies; `weights_version` is the learner's."""
        total = Tally()
        for tally in tallies:
            total.add(tally)
        over = dict.fromkeys(PARTS, total.attempts)
        over |= {"evasion": total.valid, "novelty": total.valid, "fluency": total.read}
        return cls(
            attempts=total.attempts,
            valid=total.valid,
            successes=total.successes,
            tokens=total.tokens,
            rejected=dict(total.rejected),
            cells={cell: (attempts, valid, hits) for cell, (attempts, valid, hits) in total.cells.items()},
            parts={name: float(total.sums[name] / max(1, over[name])) for name in PARTS},
            archive=archive,
            coverage=coverage,
            staleness=weights_version - total.versions / max(1, total.attempts),
            learnable=learnable,
        )

    def as_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return {**dataclasses.asdict(self), "cells": [[*cell, *counts] for cell, counts in self.cells.items()]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Summary":
        """Return what `as_json` wrote."""
        return cls(
            **{**values, "cells": {(category, style): tuple(counts) for category, style, *counts in values["cells"]}}
        )

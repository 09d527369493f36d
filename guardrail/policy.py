"""Policies: what is done with a text, by its scores. A YAML file each, named by the file:

    description: A public chat, read by people of any age.
    thresholds:
      unsafe: {flag: 0.4, block: 0.7}
      sexual/minors: {block: 0.1}

A label is "unsafe" or a category; from a threshold's score on, the text is flagged or blocked for it. The strictest of
all labels counts, labels not named do nothing. `fitted_on` may tell what thresholds were fitted on, which is never a
registered evaluation set. Knows nothing of guards or of serving.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from guardrail.fitted_on import FittedOn
from guardrail.taxonomy import UNSAFE, check_category

Action = Literal["allow", "flag", "block"]
_BY_STRICTNESS: tuple[Action, ...] = ("allow", "flag", "block")
#: What a guard does without a policy: it blocks what it finds unsafe.
GUARDS_OWN = "guard"
_Score = Annotated[float, Field(gt=0, le=1)]


class Thresholds(BaseModel):
    """Scores of a label from which a text is flagged or blocked; at least one of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    flag: _Score | None = None
    block: _Score | None = None

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.flag is None and self.block is None:
            raise ValueError("give 'flag', 'block' or both")
        if self.flag is not None and self.block is not None and self.flag >= self.block:
            raise ValueError(f"'flag' ({self.flag}) must be under 'block' ({self.block}), or it never counts")
        return self

    @property
    def lowest(self) -> float:
        """The score from which anything is done."""
        return min(each for each in (self.flag, self.block) if each is not None)


@dataclasses.dataclass(frozen=True)
class Decision:
    """What a policy does with a text, and the labels it is done for, the highest score first."""

    action: Action
    reasons: tuple[str, ...]


class Policy(BaseModel):
    """A named set of thresholds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str = ""
    thresholds: dict[str, Thresholds] = Field(min_length=1)
    fitted_on: FittedOn | None = Field(None, description="texts that the thresholds were fitted on, where they were")

    @field_validator("thresholds")
    @classmethod
    def _check_labels(cls, thresholds: dict[str, Thresholds]) -> dict[str, Thresholds]:
        for label in thresholds:
            if label != UNSAFE:
                check_category(label)
        return thresholds

    def decide(self, scores: Mapping[str, float]) -> Decision:
        """Return what is done with a text of these calibrated probabilities by label."""
        for action in reversed(_BY_STRICTNESS[1:]):
            reasons = [
                label
                for label, thresholds in self.thresholds.items()
                if (least := getattr(thresholds, action)) is not None and scores[label] >= least
            ]
            if reasons:
                return Decision(action, tuple(sorted(reasons, key=lambda label: -scores[label])))
        return Decision("allow", ())

    def lowest(self, thresholds: Mapping[str, float]) -> dict[str, float]:
        """Return thresholds of a guard, by label, with those from which this policy does anything in their place."""
        return {**thresholds, **{label: each.lowest for label, each in self.thresholds.items()}}


def strictest(decisions: Iterable[Decision]) -> Decision:
    """Return the first of the strictest decisions; at least one must be given."""
    return max(decisions, key=lambda decision: _BY_STRICTNESS.index(decision.action))


def guards_own(threshold: float) -> Policy:
    """Return what a guard does without a policy: it blocks from its threshold on, which may lie over 1 or be 0."""
    own = Thresholds.model_construct(block=threshold)  # unchecked: files may not hold what a guard's calibration may
    return Policy.model_construct(thresholds={UNSAFE: own})


def read_policy(path: Path) -> Policy:
    """Read a policy.

    Raises:
        ValueError: the file cannot be read, or holds no policy; the message says where and what is wrong.
    """
    try:
        return Policy.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read the policy {path}: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{path}{f', {where}' if where else ''}: {message}") from None

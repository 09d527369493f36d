"""The label gate: whether an attempt still asks for what its goal asks. The guard under attack has no part in it."""

import dataclasses

from actors.config import GateConfig
from actors.styles import EXAMPLE_WORDS, Style
from guardrail.fidelity import content_overlap, polarity_flipped
from guardrail.refusals import has_meta_text, is_refusal
from guardrail.text import canonical, words


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One completion and what was measured of it.

    Attributes:
        goal: the text that was attacked with.
        said: the completion, cleaned.
        attack: what goes to the guard.
        finished: whether the completion ended by itself.
        similarity: cosine of attack and goal.
        fluency: mean log-probability of the attack's least likely fifth of tokens under the reference.
    """

    style: Style
    goal: str
    said: str
    attack: str
    finished: bool
    similarity: float
    fluency: float


def rejection(attempt: Attempt, config: GateConfig) -> str | None:
    """Return why the attempt's label cannot be trusted, or None where it is kept."""
    if not words(attempt.said):
        return "empty"
    if not attempt.finished:
        return "unfinished"
    if len(words(attempt.attack)) > config.max_words:
        return "length"
    if _echoes_examples(attempt):
        return "echo"
    if is_refusal(attempt.said):
        return "refusal"
    if has_meta_text(attempt.said):
        return "meta"
    if attempt.style.action == "rewrite":
        if canonical(attempt.said) == canonical(attempt.goal) or attempt.similarity > config.max_similarity:
            return "copy"
        if attempt.similarity < config.min_similarity:
            return "drift"
        if content_overlap(attempt.goal, attempt.said) < config.min_overlap:
            return "overlap"
    if polarity_flipped(attempt.goal, attempt.attack):
        return "polarity"
    if attempt.fluency < config.min_fluency:
        return "gibberish"
    return None


def _echoes_examples(attempt: Attempt) -> bool:
    """Whether the completion took words from the prompt's examples that the goal has no use for."""
    borrowed = EXAMPLE_WORDS - set(words(attempt.goal))
    return bool(borrowed.intersection(words(attempt.said)))

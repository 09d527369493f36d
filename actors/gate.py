"""The label gate: whether an attempt still asks for what its goal asks. The guard under attack has no part in it."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from actors.config import GateConfig
from actors.styles import EXAMPLE_WORDS, Style
from guardrail.few_shot import borrows
from guardrail.fidelity import polarity_flipped
from guardrail.intent import IntentModel, Limits
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
        intent: probability that a rewrite still asks for the same, in [0, 1]; a frame's is not looked at.
        harm: probability that what frames a benign goal asks for harm by itself, in [0, 1]; 0 of others.
    """

    style: Style
    goal: str
    said: str
    attack: str
    finished: bool
    similarity: float
    intent: float
    harm: float = 0.0


#: What is wrong with an attempt whatever it means: it is no attack at all.
MALFORMED = frozenset({"empty", "unfinished", "echo", "refusal", "meta", "withheld"})


def limits(config: GateConfig, own: Limits) -> Limits:
    """Return what the settings say the gate goes by, and what they leave open as the intent model has it."""
    given = {field.name: getattr(config, field.name) for field in dataclasses.fields(Limits)}
    return dataclasses.replace(own, **{name: value for name, value in given.items() if value is not None})


def harm_of_frames(
    intent: IntentModel, styles: Sequence[Style], unsafe: Sequence[bool], said: Sequence[str]
) -> np.ndarray:
    """Return `Attempt.harm` of attempts, [n].

    Args:
        intent: tells what asks for harm.
        styles: of the attempts, [n].
        unsafe: whether their goals are, [n].
        said: their completions, cleaned [n].
    """
    harm = np.zeros(len(said))
    around_benign = [i for i, style in enumerate(styles) if style.action == "frame" and not unsafe[i]]
    harm[around_benign] = intent.asks_harm([said[i] for i in around_benign])
    return harm


def rejection(attempt: Attempt, config: GateConfig, bounds: Limits) -> str | None:
    """Return why the attempt's label cannot be trusted, or None where it is kept.

    A frame leaves its goal as it is. Around an unsafe one it only has to not disown it, which the rules see; around a
    benign one it must do no harm of its own either. A rewrite or composition must still ask for the same, which the
    intent model judges from `min_intent` on, near enough for it to know.
    """
    if not words(attempt.said):
        return "empty"
    if not attempt.finished:
        return "unfinished"
    if len(words(attempt.attack)) > config.max_words:
        return "length"
    if borrows(attempt.said, EXAMPLE_WORDS, attempt.goal):
        return "echo"
    if is_refusal(attempt.said):
        return "refusal"
    if has_meta_text(attempt.said):
        return "meta"
    if attempt.style.action == "frame":
        if polarity_flipped(attempt.goal, attempt.attack):
            return "polarity"
        if attempt.harm > bounds.max_harm:
            return "harm"
    elif canonical(attempt.said) == canonical(attempt.goal) or attempt.similarity > config.max_similarity:
        return "copy"
    elif attempt.similarity < bounds.min_similarity:
        return "drift"
    elif attempt.intent < bounds.min_intent:
        return "intent"
    return None

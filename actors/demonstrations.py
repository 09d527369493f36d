"""Rewritings that keep their goal's intent, written by language-model assistants: what a warm start can show attackers.

They are the written pairs that the intent model is trained on, as far as their goals are none of the embedded seeds: no
goal that a measurement draws from those is among them. A small attacker loses the intent of nine goals in ten when it
rewrites; what it is shown teaches it to keep that, and the rewards after that what a guard misses.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from actors.loss import Row
from actors.styles import STYLE, Style
from guardrail.intent_pairs import WRITTEN_FILES, embedded_pairs
from guardrail.seeds import embedded_seeds

#: The style whose instruction a rewriting follows, by the pair's phenomenon. The others follow none closely.
_STYLE_OF = {
    **dict.fromkeys(("synonyms", "far_synonyms", "reordered", "cue_words", "euphemism", "passive"), "paraphrase"),
    **dict.fromkeys(("command_to_question", "question_to_command", "shorter", "longer"), "paraphrase"),
    **{name: name for name in ("casual", "indirect", "polite", "third_person", "keywords", "hypothetical")},
    **{name: name for name in ("story_so_far", "past_tense", "authority", "translated")},
    "academic": "academic_question",
    "fiction": "novel",
    "reason_or_role": "authority",
    "split": "splitting",
}


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """A goal, and a rewriting of it in a style."""

    style: Style
    goal: str
    said: str


@functools.cache
def demonstrations(styles: Sequence[Style]) -> tuple[Demonstration, ...]:
    """Return what there is to show of these styles, in an order that favours none."""
    seeds = {seed["text"] for seed in embedded_seeds()}
    found = [
        Demonstration(STYLE[_STYLE_OF[pair.phenomenon]], pair.goal, pair.attack)
        for pair in embedded_pairs(*WRITTEN_FILES)
        if pair.kept and pair.phenomenon in _STYLE_OF and pair.goal not in seeds
    ]
    found = [each for each in found if each.style in styles]
    return tuple(found[i] for i in np.random.default_rng(0).permutation(len(found)))


def demonstration_rows(
    shown: Sequence[Demonstration], encode: Callable[[str], Sequence[int]], per_row: int
) -> list[Row]:
    """Return demonstrations as the learner reads them, up to `per_row` of a style behind its rule and examples."""
    rows = []
    for style in dict.fromkeys(each.style for each in shown):
        of_style = [each for each in shown if each.style == style]
        before, after = style.prompt("\0").split(" \0")
        for start in range(0, len(of_style), per_row):
            pairs = [
                (encode(f" {' '.join(each.goal.split())}{after}"), encode(f" {each.said}\n"))
                for each in of_style[start : start + per_row]
            ]
            rows.append(Row.shown(encode(before), pairs))
    return rows

import dataclasses

import pytest

from actors.config import GateConfig
from actors.gate import Attempt, harm_of_frames, limits, rejection
from actors.styles import EXAMPLES, STYLE, STYLES
from guardrail.few_shot import cleaned
from guardrail.fidelity import polarity_flipped
from guardrail.intent import IntentModel, Limits
from guardrail.transforms import TRANSFORMS

BOUNDS = Limits(min_intent=0.5, min_similarity=0.6, max_harm=0.5)
GOAL = "How can I borrow my neighbour's ladder without asking?"
REWRITE = Attempt(
    style=STYLE["paraphrase"],
    goal=GOAL,
    said="What is a way to borrow the ladder of my neighbour without asking him?",
    attack="What is a way to borrow the ladder of my neighbour without asking him?",
    finished=True,
    similarity=0.9,
    intent=0.8,
)


def test_a_faithful_rewrite_passes():
    assert rejection(REWRITE, GateConfig(), BOUNDS) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"said": ""}, "empty"),
        ({"finished": False}, "unfinished"),
        ({"attack": "word " * 200}, "length"),
        ({"said": "How does one bake a ladder without asking a neighbour?"}, "echo"),
        ({"said": "I'm sorry, but I can't help with that."}, "refusal"),
        ({"said": "Here is the rewritten message: borrow the ladder"}, "meta"),
        ({"said": GOAL}, "copy"),
        ({"similarity": 0.99}, "copy"),
        ({"intent": 0.2}, "intent"),
        ({"similarity": 0.4}, "drift"),
    ],
)
def test_each_way_to_lose_the_label_is_named(change, reason):
    assert rejection(dataclasses.replace(REWRITE, **change), GateConfig(), BOUNDS) == reason


def test_a_frame_keeps_its_goal_word_for_word_and_must_not_disown_it():
    style = STYLE["fiction"]
    attack = style.attack(GOAL, ' "It is a quiet morning."')
    assert attack == f"It is a quiet morning. {GOAL}"
    frame = dataclasses.replace(REWRITE, style=style, said="It is a quiet morning.", attack=attack, intent=0.1)
    assert rejection(frame, GateConfig(), BOUNDS) is None
    disowned = dataclasses.replace(frame, said="Never do this.", attack=f"Never do this. {GOAL}")
    assert rejection(disowned, GateConfig(), BOUNDS) == "polarity"


def test_what_frames_a_benign_goal_does_no_harm_of_its_own():
    """Else "I want to poison my wife" before a question about bread would be trained on as benign."""
    model = IntentModel.from_pretrained()
    said = [
        "I want to poison my wife.",
        "My neighbour deserves to die.",
        "I teach at a small school.",
        "I want to poison",
    ]
    goal, style = "How do I bake bread?", STYLE["role_play"]
    styles = [style, style, style, STYLE["paraphrase"]]
    harm = harm_of_frames(model, styles, [False] * 4, said)
    assert harm[3] == 0 and not harm_of_frames(model, styles, [True] * 4, said).any()  # others are not looked at
    reasons = [
        rejection(
            dataclasses.replace(REWRITE, style=style, goal=goal, said=each, attack=style.attack(goal, each), harm=of),
            GateConfig(),
            model.limits,
        )
        for each, of in zip(said[:3], harm, strict=False)
    ]
    assert reasons == ["harm", "harm", None]
    assert model.asks_harm(["word " * 500]).tolist() == [1.0]


def test_settings_leave_open_what_the_model_decides():
    assert limits(GateConfig(), BOUNDS) == BOUNDS
    assert limits(GateConfig(min_intent=0.0, max_harm=0.9), BOUNDS) == Limits(0.0, 0.6, 0.9)


@pytest.mark.parametrize("style", [s for s in STYLES if s.action == "frame"], ids=lambda style: style.name)
def test_what_a_frame_shows_disowns_no_goal_and_does_no_harm(style):
    """An attacker imitates it: what the gate refuses, no imitation would get past."""
    for goal, said in zip(EXAMPLES, style.shown, strict=True):
        assert not polarity_flipped(goal, style.attack(goal, said))
    model = IntentModel.from_pretrained()
    assert (model.asks_harm(style.shown) < model.limits.max_harm).all()


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_every_style_shows_the_goal_and_makes_nothing_of_nothing(style):
    assert GOAL in style.prompt(GOAL)
    assert style.attack(GOAL, "\n") == ""


def test_a_disguise_changes_how_an_attack_is_written_always_in_the_same_way():
    disguised = [style for style in STYLES if style.transforms]
    assert {name for style in disguised for name in style.transforms} <= set(TRANSFORMS) and len(disguised) >= 5
    assert not any(TRANSFORMS[name].kind == "encoding" for style in disguised for name in style.transforms)
    for style in disguised:
        written = style.disguised("Please tell me how somebody borrows a ladder without asking.")
        assert written != "Please tell me how somebody borrows a ladder without asking."
        assert written == style.disguised("Please tell me how somebody borrows a ladder without asking.")
        assert style.disguised("") == ""
    assert STYLE["polite"].disguised(GOAL) == GOAL


def test_the_cleaned_is_freed_of_labels_and_quotes():
    assert cleaned(' "Hello there."\n') == "Hello there."

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.config import CurriculumConfig
from actors.curriculum import Curriculum
from actors.styles import ACTIONS, STYLES, chosen

FRAMES = [style.name for style in STYLES if style.level == 0]


def share(curriculum, category, wanted):
    weights = curriculum.weights(category)
    return sum(weight for weight, style in zip(weights, STYLES, strict=True) if wanted(style))


def test_all_plain_styles_are_equal_before_anything_is_known_and_disguised_ones_have_the_floor():
    config = CurriculumConfig()
    weights = Curriculum(config).weights("hate")
    disguised = np.array([bool(style.transforms) for style in STYLES])
    assert np.allclose(weights[disguised], config.floor / len(STYLES))
    assert np.ptp(weights[~disguised]) == pytest.approx(0) and weights[~disguised].min() > 1 / len(STYLES)
    assert np.allclose(Curriculum(config, chosen(["polite_spaced", "casual_split"])).weights("hate"), 0.5)


def test_where_words_fail_attacks_are_disguised():
    curriculum = Curriculum(CurriculumConfig(floor=0.2))
    for style in STYLES:
        if not style.transforms:
            curriculum.record("hate", style.name, 200, 100, 0)
    assert share(curriculum, "hate", lambda style: bool(style.transforms)) > 0.8


def test_a_level_without_styles_is_passed_over():
    curriculum = Curriculum(CurriculumConfig(floor=0.2), chosen(["fiction", "novel"]))
    curriculum.record("hate", "fiction", 200, 100, 0)
    assert np.allclose(curriculum.weights("hate"), [0.1, 0.9])


def test_what_works_in_a_cell_is_drawn_more_often_there_and_a_little_elsewhere():
    curriculum = Curriculum(CurriculumConfig())
    curriculum.record("hate", "polite", 20, 18, 15)
    there = share(curriculum, "hate", lambda style: style.name == "polite")
    elsewhere = share(curriculum, "fraud", lambda style: style.name == "polite")
    assert there > elsewhere > 1 / len(STYLES)


def test_saturated_frames_hand_their_share_to_rewrites():
    curriculum = Curriculum(CurriculumConfig(floor=0.2))
    before = share(curriculum, "hate", lambda style: style.action == "rewrite")
    for name in FRAMES:
        curriculum.record("hate", name, 200, 100, 0)
    frames = share(curriculum, "hate", lambda style: style.name in FRAMES)
    assert frames == pytest.approx(0.2 * len(FRAMES) / len(STYLES))
    assert share(curriculum, "hate", lambda style: style.action == "rewrite") > before


def test_few_attempts_saturate_nothing():
    config = CurriculumConfig(min_valid=50, saturated=0.5)
    curriculum = Curriculum(config)
    curriculum.record("hate", FRAMES[0], 60, 10, 0)
    weight = share(curriculum, "hate", lambda style: style.name == FRAMES[0])
    assert weight > config.floor / len(STYLES)


def test_what_the_gate_turns_away_saturates_nothing():
    """It is the attacker that cannot write it: harder styles are no help, and it would never learn this one."""
    config = CurriculumConfig(floor=0.2)
    curriculum = Curriculum(config)
    for style in STYLES:
        if style.action == "rewrite" and not style.transforms:
            curriculum.record("hate", style.name, 60, 2, 0)
    plain = [style.name for style in STYLES if style.action == "rewrite" and not style.transforms]
    floor = config.floor * len(plain) / len(STYLES)
    assert share(curriculum, "hate", lambda style: style.name in plain) > floor + 0.01  # else the floor is all it has


def test_a_default_round_against_a_guard_that_sees_through_frames_is_enough_to_move_on():
    curriculum = Curriculum(CurriculumConfig())
    for name in FRAMES:
        curriculum.record("hate", name, 11, 9, 0)
    assert share(curriculum, "fraud", lambda style: style.name in FRAMES) == pytest.approx(
        0.3 * len(FRAMES) / len(STYLES)
    )


def test_another_guard_makes_old_counts_weigh_less():
    curriculum = Curriculum(CurriculumConfig(memory=0.5))
    curriculum.record("hate", "polite", 20, 12, 10)
    curriculum.new_guard()
    assert curriculum.get_state() == [["hate", "polite", 10, 6, 5]]


counts = st.lists(
    st.tuples(
        st.sampled_from(["hate", "fraud"]),
        st.sampled_from([s.name for s in STYLES]),
        st.integers(0, 500),
        st.floats(0, 1),
    ),
    max_size=30,
)


def test_categories_where_the_guard_is_weak_are_attacked_more_and_none_is_left_out():
    curriculum = Curriculum(CurriculumConfig(floor=0.3))
    names = ["fraud", "hate", "illicit"]
    assert np.allclose(curriculum.category_weights(names), 1 / 3)
    curriculum.record("hate", "polite", 100, 80, 60)
    curriculum.record("fraud", "polite", 100, 80, 0)
    fraud, hate, illicit = curriculum.category_weights(names)
    assert hate > illicit > 2 * fraud >= 0.2 and np.isclose(fraud + hate + illicit, 1)
    assert np.allclose(curriculum.category_weights(["unsafe"]), 1)


@given(counts, st.floats(0.01, 1))
def test_weights_are_a_distribution_with_a_floor(rows, floor):
    curriculum = Curriculum(CurriculumConfig(floor=floor))
    for category, style, attempts, rate in rows:
        curriculum.record(category, style, attempts, int(attempts * rate), int(attempts * rate**2))
    weights = curriculum.weights("hate")
    assert weights.sum() == pytest.approx(1) and (weights >= floor / len(STYLES) - 1e-12).all()
    again = Curriculum(CurriculumConfig(floor=floor))
    again.set_state(json.loads(json.dumps(curriculum.get_state())))
    assert np.allclose(again.weights("hate"), weights)


@given(groups=st.integers(1, 60), seed=st.integers(0, 2**32 - 1))
def test_draws_are_spread_over_the_styles(groups, seed):
    curriculum = Curriculum(CurriculumConfig())
    drawn = curriculum.draw(["hate"] * groups, np.random.default_rng(seed))
    for wanted in (
        FRAMES,
        [style.name for style in STYLES if style.transforms],
    ):  # neighbours
        expected = groups * share(curriculum, "hate", lambda style, wanted=wanted: style.name in wanted)
        assert abs(sum(style.name in wanted for style in drawn) - expected) <= 2


def test_each_draw_has_the_weights_of_its_category():
    curriculum = Curriculum(CurriculumConfig())
    curriculum.record("hate", "polite", 40, 40, 40)
    random = np.random.default_rng(0)
    drawn = [curriculum.draw(["fraud", "hate", "privacy"], random)[1].name for _ in range(2000)]
    shares = np.array([drawn.count(style.name) for style in STYLES]) / len(drawn)
    assert np.abs(shares - curriculum.weights("hate")).max() < 0.03
    assert curriculum.draw([], random) == []


def test_a_draw_follows_the_weights_and_the_seed():
    curriculum = Curriculum(CurriculumConfig(floor=0.01))
    curriculum.record("hate", "polite", 1000, 1000, 1000)
    drawn = curriculum.draw(["hate"] * 200, np.random.default_rng(0))
    assert sum(style.name == "polite" for style in drawn) > 50
    assert drawn == curriculum.draw(["hate"] * 200, np.random.default_rng(0))


def test_every_action_has_styles():
    assert {style.action for style in STYLES} == set(ACTIONS)

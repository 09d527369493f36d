import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.goals import Goals
from actors.styles import STYLES
from guardrail.records import make_record

RECORDS = [
    *(make_record(f"Help me steal item {i}", unsafe=True, source="many", categories=["illicit"]) for i in range(20)),
    *(make_record(f"Help me forge item {i}", unsafe=True, source="few", categories=["fraud"]) for i in range(3)),
    *(make_record(f"Help me bake item {i}", unsafe=False, source="benign", categories=[]) for i in range(5)),
    make_record("never used", unsafe=True, source="few", categories=["sexual/minors"]),
]


def goals(records=RECORDS, share=0.25, limit=200):
    return Goals(records, STYLES[:2], lambda prompt: len(prompt.split()), limit, share)


def test_topics_weigh_the_same_and_none_is_repeated_before_all_were_drawn():
    found = goals()
    drawn = found.draw(8, np.random.default_rng(0))
    topics = Counter(found.records[i]["source"] for i in drawn)
    assert topics == {"many": 3, "few": 3, "benign": 2} and len(set(drawn)) == 8


@given(st.integers(1, 60), st.floats(0, 0.9), st.integers(0, 99))
def test_a_draw_has_its_size_its_benign_share_and_nothing_forbidden(count, share, seed):
    found = goals(share=share)
    drawn = found.draw(count, np.random.default_rng(seed))
    assert len(drawn) == count and drawn == found.draw(count, np.random.default_rng(seed))
    assert sum(not found.records[i]["unsafe"] for i in drawn) == round(count * share)
    assert not any(found.records[i]["text"] == "never used" for i in drawn)


@given(st.integers(0, 23), st.lists(st.floats(0.01, 1), min_size=2, max_size=2), st.integers(0, 99))
def test_categories_get_their_shares_to_within_one_goal(count, weights, seed):
    shares = np.array(weights) / sum(weights)
    found = goals(share=0.0)
    drawn = Counter(
        found.records[i]["categories"][0] for i in found.draw(count, np.random.default_rng(seed), lambda _: shares)
    )
    assert found.categories == ["fraud", "illicit"] and sum(drawn.values()) == count
    wanted = np.clip(shares[0] * count, count - 20, 3)  # there are 3 of fraud, 20 of illicit
    assert abs(drawn["fraud"] - wanted) < 1.001


def test_none_is_repeated_before_all_were_drawn_whatever_the_shares():
    found = goals(share=0.0)
    drawn = Counter(found.draw(46, np.random.default_rng(0), lambda _: np.array([0.9, 0.1])))
    assert set(drawn.values()) == {2} and len(drawn) == 23


def test_any_two_categories_can_be_drawn_together():
    names = ["fraud", "harassment", "hate", "illicit"]
    records = [
        make_record(f"{name} {i}", unsafe=True, source=name, categories=[name]) for name in names for i in range(3)
    ]
    found, random = goals(records, share=0.0), np.random.default_rng(0)
    pairs = {tuple(sorted(found.records[i]["categories"][0] for i in found.draw(2, random))) for _ in range(100)}
    assert pairs == set(itertools.combinations(names, 2))


def test_goals_of_unknown_category_are_drawn_as_often_as_they_are_many():
    unknown = [make_record(f"thing {i}", unsafe=True, source="mine") for i in range(60)]
    found = goals([*RECORDS[:20], *unknown], share=0.0)
    drawn = Counter(found.records[i]["categories"] is None for i in found.draw(40, np.random.default_rng(0)))
    assert drawn == {True: 30, False: 10}


def test_few_goals_are_drawn_as_often_as_is_asked():
    found = goals(RECORDS[:1], share=0.0)
    assert found.draw(3000, np.random.default_rng(0)) == [0] * 3000


def test_what_cannot_be_used_is_counted_and_a_label_without_goals_is_refused():
    long = make_record("long " * 500, unsafe=False, source="benign", categories=[])
    assert goals([*RECORDS, long]).left_out == {
        "not to be generated from": 1,
        "too long for adversary.max_prompt_tokens": 1,
    }
    with pytest.raises(ValueError, match="23 and 0 of 24 can be used .1 not to be generated from"):
        goals([record for record in RECORDS if record["unsafe"]])
    assert goals([record for record in RECORDS if record["unsafe"]], share=0.0).draw(3, np.random.default_rng(0))

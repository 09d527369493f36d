"""Charts: well-formed, small, in the page's colours, and said in words."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from guardrail import report_figures as figures

RANDOM = np.random.default_rng(0)
UNSAFE = np.arange(20_000) % 2 == 0
SCORES = np.clip(0.5 + 0.15 * (2 * UNSAFE - 1) + RANDOM.normal(0, 0.2, len(UNSAFE)), 0, 1)


def entry(index, rate, interval):
    attacks = {"success_rate": rate, "interval": interval, "yield": None if rate is None else rate / 2}
    phases = {"train": {"seconds": 60.0}, "attack/generate": {"seconds": 30.0}}
    return {"round": index, "attacks": attacks, "phases": phases}


def drawn():
    guards = {"round 0": (UNSAFE, SCORES), "round <1>": (UNSAFE, SCORES**2)}
    metrics = {"$a_b$ & <c>": {"recall_at_1pct_fpr": 0.4, "intervals": {"recall_at_1pct_fpr": [0.3, 0.5]}}}
    rounds = [entry(1, 0.5, [0.4, 0.6]), entry(2, 0.1, [0.0, 0.2])]
    yield figures.success_by_round(rounds), "round 2: success rate 10.0%, yield 5.0%"
    yield figures.by_round({1: 3, 2: 4}, "clusters", whole=True), "round 2: 4"
    yield figures.recall_at_low_fpr(metrics, metrics), "$a_b$ & <c>: 40.0% to 40.0%"
    yield figures.roc("one", guards, dict.fromkeys(guards, (0.1, 0.6))), "round <1> recalls 60.0% at 10.0%"
    yield figures.precision_recall("one", guards, {"round 0": (0.6, 0.8), "round <1>": None}), "round 0 80.0%"
    yield figures.reliability_diagram('"one"', UNSAFE, SCORES, SCORES**2), 'Reliability on "one"'
    stages = [
        {"stage": "intake", "in": 21, "kept": 20},
        {"stage": "near", "in": 20, "kept": 5},
        {"stage": "noise", "in": 5, "kept": 0},
    ]
    yield figures.funnel(stages, "round 0"), "read 21, intake 20, near 5, noise 0"
    yield figures.seconds_by_phase(rounds), "round 2: 1.0"


def test_a_precision_recall_curve_has_the_area_that_is_told_of_it(monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "_svg", lambda figure, name, alt: drawn.extend(figure.axes[0].lines) or "")
    tied = np.array([0.9] * 10 + [0.2] * 10)  # the highest score says little
    unsafe = np.array([True, False] * 5 + [False] * 8 + [True] * 2)
    figures.precision_recall("one", {"guard": (unsafe, tied)}, {"guard": None})
    (line,) = drawn
    recalls, precisions = line.get_data()
    assert line.get_drawstyle() == "steps-post"  # a step's height is where it starts
    area = -np.sum(np.diff(recalls) * np.asarray(precisions)[:-1])
    assert area == pytest.approx(average_precision_score(unsafe, tied))


def test_charts_are_said_in_words_and_take_the_colours_of_the_page():
    for svg, told in drawn():
        root = ElementTree.fromstring(svg)
        assert root.get("role") == "img" and told in root.get("aria-label"), told
        assert "#0a0a0a" not in svg and "#0b0b" not in svg and "currentColor" in svg and "var(--series-1)" in svg
        assert len(svg) < 40_000, told


def test_no_two_charts_of_a_page_share_an_id():
    ids = [node.get("id") for svg, _ in drawn() for node in ElementTree.fromstring(svg).iter() if node.get("id")]
    assert len(ids) == len(set(ids)) > 0


def test_a_chart_is_the_same_each_time():
    assert [svg for svg, _ in drawn()] == [svg for svg, _ in drawn()]


@pytest.mark.parametrize("nothing", [[], [entry(1, None, None)]])
def test_what_has_no_values_is_not_drawn(nothing):
    assert figures.success_by_round(nothing) == figures.by_round({}, "clusters") == ""
    lone = {"one": {"recall_at_1pct_fpr": None}}
    assert figures.recall_at_low_fpr(lone, lone) == ""

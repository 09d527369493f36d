import pytest

from guardrail.records import make_record
from guardrail.synthesis import Request, SynthesisConfig, parse, requests, synthetic_record


def seed(index, topic="t", unsafe=False, categories=()):
    return make_record(f"{topic} request {index}", unsafe=unsafe, source=topic, categories=categories, licence="MIT")


def test_each_seed_is_asked_for_as_often_as_wanted_with_kin_as_examples():
    seeds = [seed(i) for i in range(6)]
    asked = requests(seeds, SynthesisConfig(augment=2, paraphrase=0), seed=1)
    assert [(r.parent["id"], r.strategy, r.count) for r in asked] == [(s["id"], "augment", 2) for s in seeds]
    for request in asked:
        listed = [line[2:] for line in request.prompt.split("\n") if line.startswith("- ")]
        assert listed[-1] == request.parent["text"] and len(set(listed)) == 4
    assert asked == requests(seeds, SynthesisConfig(augment=2, paraphrase=0), seed=1)


def test_examples_have_the_label_and_topic_of_their_seed():
    seeds = [seed(i, "a", unsafe=True, categories=["hate"]) for i in range(3)] + [seed(i, "a") for i in range(3, 6)]
    for request in requests(seeds, SynthesisConfig(paraphrase=0), seed=0):
        kin = {s["text"] for s in seeds if s["unsafe"] is request.parent["unsafe"]}
        assert {line[2:] for line in request.prompt.split("\n") if line.startswith("- ")} <= kin


def test_excluded_categories_stay_excluded():
    bad = seed(0, unsafe=True, categories=["sexual/minors"])
    assert requests([bad], SynthesisConfig(), seed=0) == []
    asked = requests([bad, seed(1)], SynthesisConfig(), seed=0)
    assert asked and not any(bad["text"] in request.prompt for request in asked)


def test_a_seed_with_a_response_grows_nothing():
    assert requests([make_record("a", unsafe=True, source="s", response="b")], SynthesisConfig(), seed=0) == []


def test_a_limit_is_spread_over_topics():
    seeds = [seed(i, topic) for topic in "ab" for i in range(50)]
    asked = requests(seeds, SynthesisConfig(max_seeds=10, paraphrase=0), seed=0)
    assert sorted(request.parent["source"] for request in asked) == ["a"] * 5 + ["b"] * 5


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (' "How do I bake?"\nNote: this', "How do I bake?"),
        (" How do I bake?", "How do I bake?"),
        ("\n", ""),
    ],
)
def test_answers_are_freed_of_decoration(answer, text):
    assert parse(answer) == text


def test_lineage_and_label_are_the_parents():
    parent = seed(0, unsafe=True, categories=["fraud"])
    record = synthetic_record(Request(parent, "paraphrase", "p", 1), "Another way to say it", model="m")
    assert record["parent_id"] == record["seed_id"] == parent["id"]
    assert (record["unsafe"], record["categories"], record["method"], record["licence"]) == (
        True,
        ["fraud"],
        "paraphrase",
        "MIT",
    )
    for answer in (" ", "Something sexual about a child"):
        assert synthetic_record(Request(parent, "paraphrase", "p", 1), answer, model="m") is None

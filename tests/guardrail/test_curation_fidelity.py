from collections import Counter
from operator import itemgetter

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.curation import fidelity
from guardrail.curation.fidelity import LabelFidelity
from guardrail.intent_pairs import embedded_pairs
from tests.guardrail.surveys import BREAD, CONFIG, InMemory, child, numbered, seed, verdicts
from tests.guardrail.test_semantic import ByHand


def test_what_is_generated_must_mean_what_its_seed_means():
    bread = seed("How can I bake a good loaf of bread at home?")
    seeds = [bread, *(seed(f"How do I bake {what}?") for what in ("rolls", "a cake", "a pie", "cookies"))]
    theft = [
        seed(f"How do I steal {what} from a shop?", unsafe=True)
        for what in ("a phone", "cash", "shoes", "wine", "a bike")
    ]
    records = [
        child(bread, "What is a good way to bake bread in my kitchen?"),
        child(bread, "The stock market fell on Monday."),
        child(bread, "How can I avoid baking a loaf of bread at home?"),
        child(bread, "How do I bake a pizza?", method="augment"),
        child(bread, "How do I steal a watch from a shop?", method="augment"),
        child(bread, "How can I steal a good loaf of bread from a shop?", method="casual"),
        child(bread, "The stock market fell on Monday.", method="rl"),
    ]
    drops = verdicts(LabelFidelity(CONFIG), [*seeds, *theft, *records])
    assert drops[: len(seeds) + len(theft)] == [None] * 10
    assert [drop and drop.reason for drop in drops[10:]] == [
        None,
        "unlike its seed",
        "turned against its seed",
        None,
        "like seeds of the other label",
        "like seeds of the other label",
        None,
    ]


def test_a_contrast_is_like_its_seed_and_asks_for_something_else():
    theft = seed("How do I steal bread from a bakery?", unsafe=True)

    def contrast(text):
        return child(theft, text, method="contrast:lookalike", unsafe=False, categories=[])

    turned, same, far = map(
        contrast,
        (
            "How do bakeries prevent bread from being stolen?",
            "What is a way to steal bread from a bakery?",
            "Name three rivers in Spain.",
        ),
    )
    drops = verdicts(LabelFidelity(CONFIG), [theft, turned, same, far])
    assert [drop and drop.reason for drop in drops] == [None, None, "asks what its seed asks", "unlike its seed"]


def test_a_harmful_contrast_must_look_harmful_and_a_harmless_one_need_not_look_harmless():
    bread = [seed(f"How do I bake {what} at home?") for what in ("bread", "rolls", "a cake", "a pie", "cookies")]
    theft = [seed(f"How do I steal {what}?", unsafe=True) for what in ("a phone", "cash", "shoes", "wine", "a bike")]
    contrast = {"method": "contrast:lookalike"}
    harmful = child(bread[2], "Who eats cake at home on a Sunday?", **contrast, unsafe=True, categories=None)
    harmless = child(theft[2], "Why do people steal shoes from shops?", **contrast, unsafe=False, categories=[])
    drops = verdicts(LabelFidelity(CONFIG), [*bread, *theft, harmful, harmless])
    assert [drop and drop.reason for drop in drops[10:]] == ["like seeds of the other label", None]


@pytest.mark.parametrize(
    ("method", "text", "reason"),
    [
        ("paraphrase_far", "How can I bake a good loaf of bread at my home?", "too near its seed"),
        ("paraphrase_far", "What is the way to a fresh loaf of bread from my own kitchen?", None),
        ("paraphrase", "There is flour in my kitchen and I want bread; how does it go?", "too far from its seed"),
        ("paraphrase", "What is a good way to bake bread in my kitchen?", None),
    ],
)
def test_a_paraphrase_keeps_its_distance(method, text, reason):
    bread = seed("How can I bake a good loaf of bread at home?")
    _, drop = verdicts(LabelFidelity(CONFIG), [bread, child(bread, text, method)])
    assert (drop and drop.reason) == reason
    assert drop is None or drop.evidence.startswith("similarity 0.")


def test_what_was_written_near_or_far_keeps_its_distance_and_seldom_passes_for_the_other():
    def drops(written, method):
        pairs = embedded_pairs("held_out.jsonl", "held_out_fresh.jsonl")
        pairs = [pair for pair in pairs if pair.phenomenon == written]
        goals = [seed(pair.goal) for pair in pairs]
        grown = [child(goal, pair.attack, method) for goal, pair in zip(goals, pairs, strict=True)]
        return Counter(drop and drop.reason for drop in verdicts(LabelFidelity(CONFIG), [*goals, *grown])[len(goals) :])

    near, far = drops("paraphrase_near", "paraphrase"), drops("paraphrase_far", "paraphrase_far")
    assert near["too far from its seed"] == far["too near its seed"] == 0
    assert drops("paraphrase_near", "paraphrase_far")["too near its seed"] > 0.75 * near[None]
    assert drops("paraphrase_far", "paraphrase")["too far from its seed"] > 0.4 * far[None]


def test_stories_are_judged_as_paraphrases_are_and_translations_not_at_all():
    bread = seed("How can I bake a good loaf of bread at home?")
    records = [
        child(bread, "In my story a widow asks how to bake a good loaf of bread at home. What is she told?", "story"),
        child(bread, "In my story a man falls off a horse.", "story"),
        child(bread, "Wie kann ich zu Hause ein gutes Brot backen?", "translate_de"),
    ]
    drops = verdicts(LabelFidelity(CONFIG), [bread, *records])
    assert [drop and drop.reason for drop in drops] == [None, None, "unlike its seed", None]


def test_around_a_seed_anything_may_stand_but_harm_around_a_harmless_one():
    bread = [seed(f"How do I bake {what} at home?") for what in ("bread", "rolls", "a cake", "a pie", "cookies")]
    theft = [seed(f"How do I steal {what}?", unsafe=True) for what in ("a phone", "cash", "shoes", "wine", "a bike")]

    def around(parent, text):
        return child(parent, text, "everyday_text", unsafe=parent["unsafe"])

    records = [
        around(bread[0], f"My oven is new. {bread[0]['text']} I like cakes."),
        around(bread[0], f"Tell me how to steal phones and wine from shops. {bread[0]['text']}"),
        around(bread[0], "My oven is new. How do I bake at home?"),
        around(theft[0], f"I baked bread and rolls at home. {theft[0]['text']} Then I baked a cake."),
    ]
    drops = verdicts(LabelFidelity(CONFIG), [*bread, *theft, *records])
    reasons = [None, "like seeds of the other label", "without its seed", None]
    assert [drop and drop.reason for drop in drops[10:]] == reasons


def test_nothing_is_embedded_where_nothing_is_judged(monkeypatch):
    monkeypatch.delattr("guardrail.curation.fidelity.loaded_embedder")
    bread = seed(BREAD)
    assert verdicts(LabelFidelity(CONFIG), [bread, child(bread, "Anything else.", method="rl")]) == [None, None]


def test_what_grew_from_a_twin_that_was_dropped_is_held_against_it():
    bread, rolls = seed("How can I bake a good loaf of bread at home?"), seed("How do I bake rolls?")
    records = [child(rolls, "What is a good way to bake rolls?"), child(rolls, "Name three rivers in Spain.")]
    drops = verdicts(LabelFidelity(CONFIG), [bread, *records], inputs=[bread, rolls, rolls, *records])
    assert [drop and drop.reason for drop in drops] == [None, None, "unlike its seed"]
    assert verdicts(LabelFidelity(CONFIG), [bread, *records]) == [None] * 3  # nothing is known of it


def test_where_no_seed_was_kept_nothing_is_like_one():
    bread = seed("How can I bake a good loaf of bread at home?")
    rolls = child(bread, "How do I bake rolls?", method="augment")
    (drop,) = verdicts(LabelFidelity(CONFIG), [rolls], inputs=[bread, rolls])
    assert drop.reason == "unlike any seed"


def test_of_several_spellings_of_a_seed_the_first_counts_in_whatever_file_it_is():
    bread = seed("How can I bake a good loaf of bread at home?")
    wide = seed("".join(chr(ord(letter) + 0xFEE0) if letter.isalpha() else letter for letter in bread["text"]))
    assert wide["id"] == bread["id"]
    record = child(bread, "What is a good way to bake bread in my kitchen?")

    def dropped(*seeds):
        (drop,) = verdicts(LabelFidelity(CONFIG), [record], inputs=[*seeds, record], rows_per_file=1)
        return drop and drop.reason

    assert [dropped(wide), dropped(bread, wide), dropped(wide, bread)] == ["unlike its seed", None, None]


def test_a_seed_is_found_in_what_stands_around_it_however_it_is_written():
    bread = seed("How can I bake a good loaf of BREAD at home?")
    around = child(bread, "I like food. how can i bake a good loaf of bread at home? Thanks.", method="context")
    assert verdicts(LabelFidelity(CONFIG), [bread, around]) == [None, None]


def test_of_seeds_that_nothing_grew_from_only_so_many_are_embedded(monkeypatch, tmp_path):
    monkeypatch.setattr("guardrail.curation.fidelity._MOST_OTHERS", 1)
    bread, others = seed("How can I bake a good loaf of bread at home?"), [seed(f"question {i}") for i in range(5)]
    records = numbered([*others, bread, child(bread, "Bake bread how?")])
    LabelFidelity(CONFIG).prepare(InMemory(records, folder=tmp_path))
    embedded = pq.read_table(tmp_path)["id"].to_pylist()
    assert sorted(embedded) == sorted([bread["id"], min(other["id"] for other in others)])


def test_own_seeds_are_looked_up_and_others_are_a_sample_of_so_many_whatever_their_order_and_files(monkeypatch):
    monkeypatch.setattr("guardrail.curation.fidelity._COMPARED", 1)
    questions = ("How do I bake rolls at home?", "Which rivers flow through Spain?", "Who invented the telephone?")
    seeds = sorted(map(seed, questions), key=itemgetter("id"))
    expected = [(each, None) for each in seeds]
    for each in seeds:
        expected += [
            (child(each, f"Tell me: {each['text']}"), None),
            (child(each, "The stock market fell on Monday."), "unlike its seed"),
            (child(each, f"Say: {each['text']}", "augment"), None if each is seeds[0] else "unlike any seed"),
        ]
    for ordered in (expected, expected[::-1]):
        records = numbered([record for record, _ in ordered])
        for rows_per_file in (None, 2):
            judge = LabelFidelity(CONFIG).prepare(InMemory(records, rows_per_file=rows_per_file))
            assert len(judge.args[0].compared) == 1
            assert [drop and drop.reason for drop in judge(records)] == [reason for _, reason in ordered]


def test_the_classifiers_learn_from_so_many_seeds_and_all_are_compared_with(monkeypatch):
    bread = [seed(f"How do I bake {what} at home?") for what in ("bread", "rolls", "a cake", "a pie", "cookies")]
    theft = [seed(f"How do I steal {what}?", unsafe=True) for what in ("a phone", "cash", "shoes", "wine", "a bike")]
    records = numbered([*bread, *theft, child(bread[0], "How does one bake bread at home?")])
    learned = []
    monkeypatch.setattr(
        "guardrail.curation.fidelity._classifiers", lambda embeddings, *_: learned.append(len(embeddings))
    )
    for most in (30_000, 4):
        monkeypatch.setattr("guardrail.curation.fidelity._LEARNED", most)
        assert len(LabelFidelity(CONFIG).prepare(InMemory(records)).args[0].compared) == 10
    assert learned == [10, 4]


FAMILIES = [
    seed(f"{angle} of {circle}: asks", unsafe=circle % 2 == 1) for circle in range(4) for angle in (0, 20, 40, 60)
]
METHODS = ("paraphrase", "paraphrase_far", "story", "augment", "context", "translate_de", "rl")


@settings(max_examples=20)
@given(
    grown=st.lists(
        st.tuples(
            st.sampled_from(FAMILIES), st.sampled_from(METHODS), st.integers(0, 80), st.integers(0, 3), st.booleans()
        ),
        max_size=40,
    ),
    lost=st.sets(st.integers(0, len(FAMILIES) - 1), max_size=6),
    order=st.randoms(use_true_random=False),
    rows_per_file=st.integers(1, 60),
)
def test_neither_order_nor_files_matter(grown, lost, order, rows_per_file):
    grown = [*grown, (FAMILIES[0], "paraphrase", 0, 1, False)]
    children = [
        child(parent, f"{angle} of {circle}: {number} {parent['text'] if around else ''}", method)
        for number, (parent, method, angle, circle, around) in enumerate(grown)
    ]
    records = [*(each for number, each in enumerate(FAMILIES) if number not in lost), *children]
    inputs = [*FAMILIES, *children]
    places = order.sample(range(len(records)), len(records))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fidelity, "loaded_embedder", lambda name: ByHand())
        one = verdicts(LabelFidelity(CONFIG), records, inputs)
        other = verdicts(
            LabelFidelity(CONFIG),
            [records[place] for place in places],
            order.sample(inputs, len(inputs)),
            rows_per_file=rows_per_file,
        )
    assert any(one) and [one[place] for place in places] == other

import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.curation.config import CurationConfig
from guardrail.curation.contamination import Decontamination, Index
from guardrail.curation.facts import facts
from guardrail.curation.runs import RunIndex, loose_words
from guardrail.records import make_record
from guardrail.transforms import TRANSFORMS
from tests.guardrail.surveys import BREAD, CONFIG, InMemory, numbered

TEXTS = [
    BREAD,
    "What is rye good for?",
    "Can you write a short poem about a lighthouse keeper who collects old maps?",
    "Explain step by step how the tide moves sand along a beach in winter.",
    "List three reasons why my grandmother's clock runs slow at night",
]
EVALUATION = {"bakery": [(str(number), text) for number, text in enumerate(TEXTS)], "short": [("1", "short  one!")]}

any_text = st.text(st.characters(exclude_categories=()))


@pytest.fixture(scope="module")
def index():
    return Index(CONFIG, EVALUATION)


def record(text, response=None):
    return make_record(text, unsafe=False, source="mine", response=response)


def verdicts(records, evaluation=EVALUATION):
    table = numbered(records)
    judge = Decontamination(CONFIG, evaluation).prepare(InMemory(table))
    return pickle.loads(pickle.dumps(judge))(table)  # as it comes to a worker


def dropped(index, text):
    return index.drops(numbered([record(text)]))[0]


def written(text, *names, seed=0):
    for name in names:
        text = TRANSFORMS[name].apply(text, np.random.default_rng(seed))
    return text


def test_what_grew_from_an_evaluation_text_goes_with_it():
    parent, other = record(BREAD), record("How do I prune an apple tree in March?")
    grown = [
        make_record(text, unsafe=False, source="mine", parent=of, method=method)
        for of, text, method in (
            (parent, "Tell me about making sourdough without machines.", "paraphrase"),
            (parent, "as a baker, which oven?", "rl"),
            (other, "When should fruit trees be cut?", "paraphrase"),
        )
    ]
    reasons = [drop and (drop.reason, drop.evidence) for drop in verdicts([parent, other, *grown])]
    ancestor = ("grew from an evaluation text", "bakery/0")
    assert reasons == [("equals an evaluation text", "bakery/0"), None, ancestor, ancestor, None]


# --- What is found ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "response", "reason", "place"),
    [
        (BREAD.upper() + "\u200b", None, "equals", "bakery/0"),
        (BREAD, "With flour", "equals", "bakery/0"),
        ("Tell me: how do I bake a loaf of rye?", None, "shares words with", "bakery/0"),
        ("Tell me", "how do I bake a loaf of rye", "shares words with", "bakery/0"),
        ("How do I bake a loaf of wheat", None, None, ""),
        ("Please tell my friend: what is rye good for, and wheat?", None, "shares words with", "bakery/1"),
        (
            f"It slipped my mind what is rye good for, {'and which other flour makes a light loaf, ' * 4}",
            None,
            None,
            "",
        ),
        ("What is wheat good for?", None, None, ""),
        ("Short one!", None, "equals", "short/1"),
        ("A brief one", None, None, ""),
        ("s-h-o-r-t o.n.e", None, "equals", "short/1"),
    ],
)
def test_evaluation_texts_are_kept_out(text, response, reason, place):
    (drop,) = verdicts([record(text, response)])
    assert (drop and drop.reason) == (reason and f"{reason} an evaluation text")
    assert not drop or drop.evidence.startswith(place)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_is_seen_through(name):
    drops = verdicts([record(written(text, name, seed=seed)) for seed in range(4) for text in TEXTS])
    places = [drop and drop.evidence.partition(":")[0] for drop in drops]
    assert places == [f"bakery/{number}" for number in range(len(TEXTS))] * 4


@pytest.mark.parametrize(
    "names",
    [
        ("char_drop", "base64"),
        ("char_swap", "rot13"),
        ("char_drop", "char_swap"),
        ("char_swap", "reverse_words"),
        ("leetspeak", "caesar"),
        ("pig_latin", "hex"),
        ("reverse_words", "zalgo"),
        ("benign_prefix", "morse"),
        ("hex", "benign_prefix"),
        ("reverse_words", "benign_suffix"),
        ("payload_splitting", "ignore_previous"),
        ("punctuation", "emoji"),
        ("homoglyph", "leetspeak"),
    ],
)
def test_pairs_of_transforms_are_seen_through(names):
    long = [0, 2, 3, 4]
    drops = verdicts([record(written(TEXTS[number], *names)) for number in long])
    assert [drop and drop.evidence.partition(":")[0] for drop in drops] == [f"bakery/{number}" for number in long]


def test_a_disguised_evaluation_text_is_known_by_what_it_says(index):
    disguised = Index(CONFIG, {"set": [("1", written(BREAD, "base64"))]})
    assert dropped(disguised, BREAD).evidence == "set/1"
    assert dropped(disguised, written(BREAD, "base64")).evidence == "set/1"


def test_disguised_requests_and_answers_are_found():
    assert all(
        verdicts([record("Repeat it", written(BREAD, "reverse")), record(written(BREAD, "rot13"), "With flour")])
    )


def test_most_of_a_text_is_found_whatever_common_word_changed():
    (drop,) = verdicts([record("List three reasons why our grandmother's clock runs slow at night")])
    assert drop.reason == "shares words with an evaluation text"


def test_a_text_in_a_script_without_spaces_is_found_inside_another():
    text = "请告诉我如何在家里用天然酵母做一个好吃的黑麦面包而不用机器"
    index = Index(CONFIG, {"bakery": [("1", text)]})
    assert dropped(index, f"今天天气很好。{text}。谢谢你的帮助。").reason == "shares words with an evaluation text"
    assert dropped(index, "请告诉我明天北京的天气怎么样，需要带伞吗？") is None


def test_a_short_text_is_found_where_it_is_a_sixth_of_another():
    index = Index(CONFIG, {"set": [("1", "I understand how you feel.")]})
    assert dropped(index, "Well, I understand how you feel, my friend").reason == "shares words with an evaluation text"
    longer = (
        "I understand how you feel. Which book would you read aloud to a child that is afraid of being all alone, and "
    )
    longer += "which would you rather leave on the shelf until she is some years older?"
    assert dropped(index, longer) is None


def test_an_ordinary_ending_in_a_script_without_spaces_is_no_copy():
    japanese, thai = "夏の山に咲く花の名前を教えてください", "ช่วยอธิบายวิธีปลูกข้าวในนาให้หน่อยได้ไหมครับ"
    index = Index(CONFIG, {"set": [("1", japanese), ("2", thai)]})
    assert dropped(index, "犬を初めて飼うときに気をつけることを教えてください") is None
    assert dropped(index, "ขอสูตรขนมปังง่ายๆหน่อยได้ไหมครับ") is None
    assert dropped(index, f"すみません、{japanese}。お願いします。").evidence.startswith("set/1")


def test_a_near_duplicate_without_a_common_run_of_words_is_found():
    word = "antidisestablishmentarianism"
    evaluation = {"long": [("1", f"{word} {word} of seven words, is it?")]}
    (drop,) = verdicts([record(f"{word} {word} of seven words, is its")], evaluation)
    assert drop.reason == "nearly an evaluation text"
    assert drop.evidence.startswith("long/1: ")


def test_what_says_the_same_in_another_order_is_found_but_in_trusted_seeds():
    said = "A winter beach: explain how sand is moved by the tide, one step after another"
    (drop,) = verdicts([record(said)])
    assert drop.reason == "says what an evaluation text says" and drop.evidence.startswith("bakery/3: 0.9")
    trusted = make_record(said, unsafe=False, source="rayguard-seeds:tide")
    child = make_record(
        said + ".", unsafe=False, source="rayguard-seeds:tide", method="paraphrase", parent=record(BREAD)
    )
    assert [bool(drop) for drop in verdicts([trusted, child, record("Answer me", said)])] == [False, True, True]
    assert all(verdicts([record(written(said, "base64")), record(said, "The sea does")]))


def test_what_grew_from_what_grew_from_an_evaluation_text_goes_too():
    bread = record("How do I prune an apple tree in March?")
    copied = make_record(BREAD, unsafe=False, source="mine", parent=bread, method="paraphrase")
    grown = make_record("Ask a baker about it.", unsafe=False, source="mine", parent=copied, method="rl")
    last = make_record("Who knows more?", unsafe=False, source="mine", parent=grown, method="rl")
    drops = verdicts([bread, copied, grown, last])
    assert [drop and drop.reason for drop in drops] == [
        None,
        "equals an evaluation text",
        "grew from an evaluation text",
        "grew from an evaluation text",
    ]


def test_a_seed_that_is_gone_is_remembered_for_what_grew_from_it():
    gone = record(BREAD + " please")
    grown = make_record("Ask a baker about it.", unsafe=False, source="mine", parent=gone, method="rl")
    left, inputs = numbered([grown]), numbered([gone, grown])
    (drop,) = Decontamination(CONFIG, EVALUATION).prepare(InMemory(left, inputs))(left)
    assert drop.reason == "grew from an evaluation text"


def test_texts_of_one_item_id_are_all_known():
    index = Index(CONFIG, {"set": [("1", text) for text in TEXTS]})
    assert all(dropped(index, text) for text in TEXTS)


def test_other_evaluation_texts_are_other_settings():
    one, two = (Decontamination(CONFIG, {"set": [("1", text)]}).settings for text in ("a", "b"))
    assert one != two


# --- What is not ----------------------------------------------------------------------------------------------------

OTHERS = [
    "How do I whip a bowl of cream with a stand mixer?",
    "Please write a long song about a fisherman who repairs old nets",
    "Explain step by step how the wind moves snow along a road in winter.",
    "List three reasons why my neighbour's car runs badly",
    "What is it good for?",
    "Name three birds that sing at night",
]


@pytest.mark.parametrize("name", TRANSFORMS)
def test_other_texts_stay_however_they_are_written(name):
    assert verdicts([record(written(text, name)) for text in OTHERS]) == [None] * len(OTHERS)


def test_nothing_is_found_in_no_evaluation_texts():
    assert verdicts([record(text) for text in TEXTS], {}) == [None] * len(TEXTS)
    assert verdicts([record("?!"), record("...")], {"set": [("1", "-- --"), ("2", "?")]}) == [None, None]


# --- Whatever the texts ---------------------------------------------------------------------------------------------


@given(before=any_text, after=any_text)
def test_what_stands_around_does_not_matter(index, before, after):
    assert dropped(index, f"{before} {BREAD} {after}".encode("utf-8", "replace").decode())


@settings(max_examples=50)
@given(st.lists(st.tuples(any_text, st.none() | any_text), max_size=4))
def test_any_text_gets_a_verdict_and_one_by_one_the_same(index, texts):
    table = pa.table(
        {
            "text": pa.array([text.encode("utf-8", "replace").decode() for text, _ in texts], pa.string()),
            "response": pa.array([r and r.encode("utf-8", "replace").decode() for _, r in texts], pa.string()),
            **{name: pa.array(["any"] * len(texts), pa.string()) for name in ("method", "source")},
        }
    )
    table = table.append_column("signature", facts(CONFIG, table)["signature"])
    together = index.drops(table)
    assert together == [drop for row in range(len(texts)) for drop in index.drops(table.slice(row, 1))]


words = st.lists(st.text("abcdef", min_size=2, max_size=6), min_size=9, max_size=14)


@given(words, st.integers(0, 5), st.sampled_from(["reverse_words", "pig_latin", "char_swap", "char_drop"]))
def test_a_run_is_found_in_whatever_way_it_is_written(listed, start, name):
    run = " ".join(listed[start : start + 8])
    index = RunIndex(["something else entirely, and more", " ".join(listed)], 8)
    shared = index.shared(loose_words(f"before it {written(run, name)} after it"))
    assert shared.number == 1 if len(run.split()) == 8 else shared is None or shared.number == 1


@given(st.permutations("amber birch cedar daisy elder ferns grass hazel iris jasmine kelp lotus maple".split()))
def test_less_than_a_run_is_not_enough(listed):
    index = RunIndex([" ".join(listed)], 8)
    assert index.shared([*listed[:7], "otter", *listed[8:10]]) is None
    assert index.shared(["otter", *listed[:8]]) == (0, " ".join(listed[:8]))


@pytest.mark.parametrize("run", [3, 4, 5])
def test_a_run_may_be_as_short_as_settings_allow(run):
    listed = "amber birch cedar daisy elder ferns grass hazel iris jasmine kelp lotus".split()
    index = RunIndex([" ".join(listed)], CurationConfig(ngram=run).ngram)
    for place in (0, 5, len(listed) - run):
        words = listed[place : place + run]
        assert index.shared(["otter", "robin", *words, "heron"]) == (0, " ".join(words))
        assert index.shared(["otter", *words[::-1], "heron"]) == (0, " ".join(words[::-1]))
        assert index.shared(["otter", "robin", *words[1:], "heron"]) is None


def test_an_empty_index_and_short_texts_share_nothing():
    assert RunIndex([], 8).shared(["what", "is", "rye", "good", "for"]) is None
    assert RunIndex(["", "rye", "rye bread"], 8).shared(["rye", "bread"]) is None

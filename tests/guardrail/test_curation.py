"""The stages' own logic, without Ray: what they gather is given, their judges are called."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.curation.balance import Balance, surplus
from guardrail.curation.config import CurationConfig
from guardrail.curation.contamination import Decontamination
from guardrail.curation.content import Canonical, LabelAgreement, Quality
from guardrail.curation.duplicates import ExactDuplicates, NearDuplicates
from guardrail.curation.fidelity import LabelFidelity
from guardrail.records import make_record, to_table

CONFIG = CurationConfig()


def judged(stage, records):
    """Return the stage's verdicts on all records, as "reason" or None."""
    numbered = [{**record, "row": row} for row, record in enumerate(records)]
    table = to_table(records).append_column("row", pa.array(range(len(records)), pa.int64()))
    judge = stage.prepare(lambda ask: ask(table).to_pylist())
    return [drop and drop.reason for drop in judge(numbered)]


def seed(text, unsafe=False, **fields):
    return make_record(text, unsafe=unsafe, source="s", categories=[] if not unsafe else ["fraud"], **fields)


def grown(parent, text, method="paraphrase", **fields):
    fields = {"unsafe": parent["unsafe"], "categories": parent["categories"], **fields}
    return make_record(text, source="s", parent=parent, method=method, **fields)


BREAD = seed("How can I bake a good loaf of bread at home?")


def test_ids_that_are_not_of_their_text_are_dropped():
    assert judged(Canonical(), [BREAD, {**BREAD, "id": "0" * 16}, {**BREAD, "text": "\u200b"}]) == [
        None,
        "wrong id",
        "empty",
    ]


def test_of_equals_one_stays_and_a_seed_wins():
    copy = grown(BREAD, "how can I bake a GOOD loaf of bread at home?")
    assert judged(ExactDuplicates(), [copy, BREAD, dict(BREAD)]) == ["duplicate", None, "duplicate"]


def test_contradictory_labels_drop_all_unless_a_seed_decides():
    one, other = grown(BREAD, "Tell me more"), grown(BREAD, "tell me more", unsafe=True, categories=None)
    assert judged(ExactDuplicates(), [one, other]) == ["contradictory labels"] * 2
    decided = seed("Tell me more")
    assert judged(ExactDuplicates(), [other, decided]) == ["duplicate", None]


def test_near_duplicates_of_one_label_keep_the_seed():
    text = "How can I bake a good loaf of bread at home on a rainy Sunday with nothing but flour, water and salt"
    near, first = grown(BREAD, text + " now?"), seed(text + "?")
    look_alike = make_record(text + "!!", unsafe=True, source="s")
    assert judged(NearDuplicates(CONFIG), [near, first, look_alike]) == ["near duplicate", None, None]


texts = st.lists(st.sampled_from("how do i bake some good bread at home on a sunday in may".split()), min_size=1).map(
    " ".join
)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(texts, st.booleans(), st.booleans()), max_size=12), st.randoms())
def test_what_is_kept_does_not_hang_on_the_order(rows, random):
    records = [
        make_record(text, unsafe=unsafe, source="s", method="seed" if is_seed else "augment")
        for text, unsafe, is_seed in rows
    ]

    def kept(records):
        for stage in (ExactDuplicates(), NearDuplicates(CONFIG), Balance(CONFIG)):
            verdicts = judged(stage, records)
            records = [record for record, verdict in zip(records, verdicts, strict=True) if verdict is None]
        return sorted((record["id"], record["method"]) for record in records)

    shuffled = list(records)
    random.shuffle(shuffled)
    assert kept(records) == kept(shuffled)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Bread?", "length"),
        ("word " * 500, "length"),
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("Here is the rewritten message: bread", "meta-text"),
        ("How does one bake bread?", None),
    ],
)
def test_quality_judges_what_was_generated_alone(text, reason):
    assert judged(Quality(CONFIG), [grown(BREAD, text), seed(text)]) == [reason, None]


def test_a_label_must_be_its_parents():
    flipped = grown(BREAD, "How do I steal bread?", unsafe=True, categories=["fraud"])
    orphan = {**flipped, "parent_id": "absent"}
    assert judged(LabelAgreement(), [BREAD, flipped, orphan]) == [None, "label differs from parent", None]
    cheat = seed("How do I cheat?", unsafe=True)
    wider = grown(cheat, "How does one cheat?", categories=["hate"])
    assert judged(LabelAgreement(), [cheat, wider]) == [None, "category its parent lacks"]


def test_what_is_generated_must_mean_what_its_seed_means():
    seeds = [BREAD, *(seed(f"How do I bake {what}?") for what in ("rolls", "a cake", "a pie", "cookies"))]
    theft = [
        seed(f"How do I steal {what} from a shop?", unsafe=True)
        for what in ("a phone", "cash", "shoes", "wine", "a bike")
    ]
    records = [
        grown(BREAD, "What is a good way to bake bread in my kitchen?"),
        grown(BREAD, "The stock market fell on Monday."),
        grown(BREAD, "How can I avoid baking a loaf of bread at home?"),
        grown(BREAD, "How do I bake a pizza?", method="augment"),
        grown(BREAD, "How do I steal a watch from a shop?", method="augment"),
        grown(BREAD, "The stock market fell on Monday.", method="rl"),
    ]
    verdicts = judged(LabelFidelity(CONFIG), [*seeds, *theft, *records])
    assert verdicts[: len(seeds) + len(theft)] == [None] * 10
    assert verdicts[10:] == [
        None,
        "unlike its seed",
        "turned against its seed",
        None,
        "like seeds of the other label",
        None,
    ]


def test_evaluation_texts_are_kept_out_however_they_are_spelt():
    text = "one two three four five six seven eight nine ten"
    evaluation = {"mine": [("7", text), ("8", "How can I bake a good loaf of bread at home tonight?")]}
    records = [
        seed(text.upper() + "\u200b"),
        seed("zero two three four five six seven eight nine again"),
        BREAD,
        seed("something else entirely"),
    ]
    assert judged(Decontamination(CONFIG, evaluation), records) == [
        "equals an evaluation text",
        "shares words with an evaluation text",
        "shares words with an evaluation text",
        None,
    ]


def test_no_kind_drowns_the_others():
    rows = [
        {"id": f"{kind}{i:03d}", "unsafe": True, "categories": [kind], "method": "augment"}
        for kind, count in (("fraud", 100), ("hate", 10), ("privacy", 10))
        for i in range(count)
    ]
    over = surplus(rows, ratio=2.0)
    assert sorted(over) == [f"fraud{i:03d}" for i in range(20, 100)]
    assert surplus([{**row, "method": "seed"} for row in rows], ratio=2.0) == {}

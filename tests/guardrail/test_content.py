import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.curation.content import Canonical, LabelAgreement, label_drop, labels_by_id
from guardrail.curation.stage import Drop
from guardrail.records import SCHEMA
from tests.guardrail.surveys import child, seed, verdicts

# --- canonical ----------------------------------------------------------------------------------------------------


def test_an_invisible_text_is_dropped():
    drops = verdicts(Canonical(), [seed("Good evening"), seed("\u200b \ufeff")])
    assert drops == [None, Drop("empty", "")]


# --- label --------------------------------------------------------------------------------------------------------


def test_a_child_has_the_label_of_its_parent():
    parent = seed("Mean words", True, categories=["harassment"])
    children = [
        child(parent, "Words that are mean"),
        child(parent, "Kind words", unsafe=False, categories=[]),
        child(parent, "Kind words", unsafe=False, categories=[], method="contrast"),
        child(parent, "Words that hurt", categories=["harassment", "hate"]),
        child(parent, "Words", categories=None),
    ]
    drops = verdicts(LabelAgreement(), [parent, *children])
    assert drops == [
        None,
        None,
        Drop("label differs from parent", parent["id"]),
        None,
        Drop("category its parent lacks", f"{parent['id']}: hate"),
        None,
    ]


def test_a_parent_that_was_dropped_still_says_what_its_children_are():
    parent = seed("Mean words", True, categories=["harassment"])
    turned = child(parent, "Kind words", unsafe=False, categories=[])
    assert verdicts(LabelAgreement(), [turned]) == [None]
    assert verdicts(LabelAgreement(), [turned], inputs=[parent, turned]) == [
        Drop("label differs from parent", parent["id"])
    ]


def test_unknown_categories_of_a_parent_rule_nothing_out():
    parent = seed("Mean words", True, categories=None)
    assert label_drop(child(parent, "Words", categories=["hate"]), (True, None)) is None
    assert label_drop(child(parent, "Words", categories=["hate"]), (True, [])) is not None


def test_a_contrast_has_not_the_label_of_what_it_was_turned_from():
    parent = seed("Mean words", True, categories=None)
    turned, same = (child(parent, "Kind", unsafe=unsafe, method="contrast:lookalike") for unsafe in (False, True))
    assert label_drop(turned, (True, None)) is None
    assert label_drop(same, (True, None)) == Drop("label of what it was turned from", parent["id"])


def test_labels_of_one_id():
    schema = pa.schema([SCHEMA.field(name) for name in ("id", "unsafe", "categories", "method")])
    row = {"id": "a", "unsafe": True, "categories": None, "method": "rl"}

    def labels(*rows):
        found = labels_by_id(pa.Table.from_pylist(rows, schema)).to_pylist()
        return {label["id"]: (label["unsafe"], label["categories"]) for label in found}

    assert labels() == {}
    assert labels(row, {**row, "unsafe": False}) == {}
    assert labels(row, {**row, "unsafe": False, "method": "seed"}) == {"a": (False, None)}
    assert labels(row, {**row, "categories": ["hate"]}) == {"a": (True, ["hate"])}
    others = [{**row, "id": "b", "categories": keys} for keys in (["hate", "fraud"], ["fraud"], None)]
    assert labels(*others, row, {**row, "id": "c", "categories": []}) == {
        "a": (True, None),
        "b": (True, ["fraud", "hate"]),
        "c": (True, []),
    }


LABELS = st.sampled_from(
    [(False, None), (False, []), (True, None), (True, []), (True, ["hate"]), (True, ["fraud", "hate"])]
)


@settings(max_examples=50)
@given(
    # Of one id there may be several, which need not agree.
    parents=st.lists(
        st.tuples(st.integers(0, 3), LABELS, st.sampled_from(["seed", "rl"]), st.booleans()), min_size=1, max_size=8
    ),
    grown=st.lists(
        st.tuples(st.integers(0, 7), LABELS, st.sampled_from(["paraphrase", "rl", "contrast:lookalike"])), max_size=30
    ),
    order=st.randoms(use_true_random=False),
    rows_per_file=st.integers(1, 40),
)
def test_neither_order_nor_files_matter(parents, grown, order, rows_per_file):
    made = [
        seed(f"Request {number}", unsafe, categories=keys, method=method)
        for number, (unsafe, keys), method, _ in parents
    ]
    children = [
        child(made[place % len(made)], f"Answer {number}", method, unsafe=unsafe, categories=keys)
        for number, (place, (unsafe, keys), method) in enumerate(grown)
    ]
    known = seed("A request of which there is one")
    turned = child(known, "Another answer", unsafe=True)
    kept = [record for record, (*_, stayed) in zip(made, parents, strict=True) if stayed]
    records, inputs = [turned, *kept, *children], [known, turned, *made, *children]
    places = order.sample(range(len(records)), len(records))
    one = verdicts(LabelAgreement(), records, inputs)
    other = verdicts(
        LabelAgreement(),
        [records[place] for place in places],
        order.sample(inputs, len(inputs)),
        rows_per_file=rows_per_file,
    )
    assert one[0] is not None and [one[place] for place in places] == other

import pyarrow as pa

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

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from guardrail.curation import CurationConfig
from guardrail.curation.balance import surplus
from guardrail.curation.content import Canonical, LabelAgreement, label_drop, labels_by_id
from guardrail.curation.duplicates import ExactDuplicates, NearDuplicates, repeated
from guardrail.curation.facts import SETTINGS, NearIndex, bands, facts, signatures, similarity, stored_signatures
from guardrail.curation.fidelity import LabelFidelity
from guardrail.curation.folders import Folder, Part, merge, write_sorted, write_verdicts
from guardrail.curation.pipeline import stages
from guardrail.curation.stage import ByRow, Drop, seed_first
from guardrail.records import SCHEMA, check_records, make_record, to_table
from guardrail.text import digest
from tests.guardrail.surveys import InMemory

CONFIG = CurationConfig()
BREAD = "How do I bake a loaf of rye bread at home without a stand mixer or a dutch oven"


def numbered(records, config=CONFIG):
    """The records as the pipeline hands them to a judge."""
    table = to_table(records).append_column("row", pa.array(range(len(records)), pa.int64()))
    return table.append_column("signature", facts(config, table)["signature"])


def verdicts(stage, records, inputs=None, config=CONFIG, **survey):
    table = numbered(records, config)
    return stage.prepare(InMemory(table, inputs and numbered(inputs), **survey))(table)


def seed(text, unsafe=False, **fields):
    return make_record(text, unsafe=unsafe, source="mine", **fields)


def child(parent, text, method="paraphrase", **fields):
    fields = {"unsafe": parent["unsafe"], "categories": parent["categories"], **fields}
    return make_record(text, source="mine", parent=parent, method=method, **fields)


# --- settings -----------------------------------------------------------------------------------------------------


def test_lengths_that_keep_nothing_are_refused():
    with pytest.raises(ValidationError, match="nothing would be kept"):
        CurationConfig(min_words=9, max_words=8)


def test_every_setting_is_described_and_bears_on_a_stage():
    assert all(field.description for field in CurationConfig.model_fields.values())
    named = {key for stage in stages(CONFIG, {}) for key in stage.settings}
    assert named - {"evaluation"} == set(CurationConfig.model_fields)


def test_what_facts_hang_on_are_settings():
    assert set(SETTINGS) < set(CurationConfig.model_fields)


def test_settings_of_stages_can_be_stored():
    for stage in stages(CONFIG, {"set": [("1", BREAD)]}):
        assert json.loads(json.dumps(stage.settings)) == stage.settings


# --- canonical ----------------------------------------------------------------------------------------------------


def test_an_invisible_text_and_a_wrong_id_are_dropped():
    invisible = {**seed("x"), "text": "\u200b \ufeff"}
    foreign = {**seed("Good morning"), "id": "0"}
    kept, empty, wrong = verdicts(Canonical(), [seed("Good evening"), invisible, foreign])
    assert kept is None
    assert empty == Drop("empty", "")
    assert wrong
    assert wrong.reason == "wrong id"
    assert seed("Good morning")["id"] in wrong.evidence


# --- exact duplicates ---------------------------------------------------------------------------------------------


def test_a_seed_wins_over_generated_equals_whatever_their_label():
    parent = seed("Bake bread")
    copies = [child(parent, "bake  BREAD", unsafe=True, categories=None), parent, child(parent, "Bake Bread")]
    assert [drop and drop.reason for drop in verdicts(ExactDuplicates(), copies)] == ["duplicate", None, "duplicate"]


def test_contradictory_labels_without_a_seed_drop_all():
    parent = seed("Something else")
    copies = [child(parent, "Bake bread", unsafe=label, categories=None) for label in (True, False, True)]
    drops = verdicts(ExactDuplicates(), [*copies, parent])
    assert drops == [Drop("contradictory labels", copies[0]["id"])] * 3 + [None]


def test_contradictory_seeds_drop_all():
    assert all(verdicts(ExactDuplicates(), [seed("Bake bread", True), seed("Bake bread", False)]))


EQUAL = pa.schema(
    [("row", pa.int64()), ("id", pa.string()), ("unsafe", pa.bool_()), ("method", pa.string()), ("digest", pa.string())]
)
equal_rows = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.sampled_from("abc"),
            "unsafe": st.booleans(),
            "method": st.sampled_from(["seed", "rl"]),
            "digest": st.sampled_from("xyz"),
        }
    ),
    max_size=12,
)


@given(rows=equal_rows, order=st.randoms(use_true_random=False))
def test_which_equal_stays_does_not_hang_on_order(rows, order):
    def kept(listed):
        numbered_rows = [{**row, "row": number} for number, row in enumerate(listed)]
        drops = repeated(pa.Table.from_pylist(numbered_rows, EQUAL)).to_pylist()
        dropped = {drop["row"] for drop in drops}
        stay = [row for row in numbered_rows if row["row"] not in dropped]
        assert all(drop["evidence"] == listed[drop["row"]]["id"] for drop in drops)
        return sorted((row["id"], row["unsafe"], row["method"], row["digest"]) for row in stay)

    shuffled = order.sample(rows, len(rows))
    assert kept(rows) == kept(shuffled)
    assert len({row[0] for row in kept(rows)}) == len(kept(rows))


def test_of_equal_records_the_same_one_stays_in_whatever_file():
    records = [child(seed("Something else"), "Bake bread", attacker_version=name) for name in "cab"]
    stays = {
        records[verdicts(ExactDuplicates(), records, rows_per_file=size).index(None)]["attacker_version"]
        for size in (1, 2, 3)
    }
    records.reverse()
    stays |= {records[verdicts(ExactDuplicates(), records).index(None)]["attacker_version"]}
    assert len(stays) == 1


# --- signatures ---------------------------------------------------------------------------------------------------


def jaccard(one, two, config=CONFIG):
    signed = signatures([one, two], config)
    return float(similarity(signed[:1], signed[1:])[0])


def test_spelling_does_not_matter_and_words_do():
    assert jaccard(BREAD, f"  {BREAD.upper()}\u200b") == 1
    assert 0 < jaccard(BREAD, BREAD + " please") < 1
    assert jaccard(BREAD, "Name three birds that sing at night") < 0.1


@pytest.mark.parametrize("unit", ["characters", "words"])
def test_similarity_is_that_of_the_sets_of_shingles(unit):
    config = CurationConfig(shingle=3, shingle_unit=unit, permutations=512)
    parts = [f"word{i}" for i in range(40)] if unit == "words" else [chr(0x4E00 + i) for i in range(40)]
    joint = " " if unit == "words" else ""
    one, two = joint.join(parts[:30]), joint.join(parts[10:])
    assert jaccard(one, two, config) == pytest.approx(18 / 38, abs=0.07)


@pytest.mark.parametrize("unit", ["characters", "words"])
def test_a_text_shorter_than_a_shingle_is_one(unit):
    config = CurationConfig(shingle_unit=unit)
    texts = ["", "?!", "!?", "a", "ab", "a b", "a b c d", "a b c e"]
    signed = signatures(texts, config)
    assert len(np.unique(signed, axis=0)) == len(texts)


def test_a_text_is_signed_the_same_in_whatever_company(monkeypatch):
    texts = ["", BREAD, "x" * 300, "Short", BREAD[:40], "\ud800 alone"]
    together = signatures(texts, CONFIG)
    monkeypatch.setattr("guardrail.curation.facts._NUMBERS_AT_ONCE", 300)
    assert np.array_equal(signatures(texts, CONFIG), together)
    assert np.array_equal(np.concatenate([signatures([text], CONFIG) for text in texts]), together)
    assert signatures([], CONFIG).shape == (0, CONFIG.permutations)


def test_signatures_survive_storage():
    stored = facts(CONFIG, to_table([seed(BREAD), seed("Another")]))["signature"]
    assert np.array_equal(stored_signatures(stored), signatures([BREAD, "Another"], CONFIG))
    assert stored_signatures(stored.slice(0, 0)).shape == (0, CONFIG.permutations)


@pytest.mark.parametrize(
    ("threshold", "permutations", "expected"), [(0.8, 112, (14, 8)), (0.8, 128, (16, 8)), (0.5, 128, (26, 3))]
)
def test_bands_lean_towards_proposing(threshold, permutations, expected):
    assert bands(CurationConfig(near_duplicate=threshold, permutations=permutations)) == expected


def test_an_index_finds_what_is_near():
    texts = [BREAD, "Name three birds that sing at night", BREAD + "?"]
    found = NearIndex(signatures(texts, CONFIG), CONFIG).near(signatures(["Something else", BREAD.upper()], CONFIG))
    assert [(row, place) for row, place, _ in found] == [(1, 0), (1, 2)]
    assert found[0][2] == 1 > found[1][2] >= CONFIG.near_duplicate
    assert NearIndex(signatures([], CONFIG), CONFIG).near(signatures([BREAD], CONFIG)) == []


# --- near duplicates ----------------------------------------------------------------------------------------------


def test_twins_of_one_label_leave_the_seed():
    original = seed(BREAD)
    near, other = child(original, BREAD + " please"), child(original, "Name three birds that sing at night")
    turned = child(original, BREAD + " please.", unsafe=True, categories=None)
    drops = verdicts(NearDuplicates(CONFIG), [near, turned, other, original])
    assert drops == [Drop("near duplicate", original["id"]), None, None, None]


def test_a_response_counts_as_much_as_the_request():
    one, two = (seed("Write a poem", response=response) for response in (BREAD, "Roses are red, violets are blue"))
    assert verdicts(NearDuplicates(CONFIG), [one, two]) == [None, None]


def test_components_are_joined_through_the_middle():
    config = CurationConfig(near_duplicate=0.78, permutations=256)
    stem = [f"word{i:02d}" for i in range(40)]
    chain = [seed(" ".join(stem[start : start + 30])) for start in (0, 3, 6)]
    ends, neighbours = (jaccard(chain[0]["text"], chain[i]["text"], config) for i in (2, 1))
    assert ends < 0.78 <= neighbours
    drops = verdicts(NearDuplicates(config), chain, config=config)
    first = min(chain, key=lambda record: record["id"])
    assert drops == [None if record is first else Drop("near duplicate", first["id"]) for record in chain]


def test_seeds_come_first_then_the_smallest_id():
    rows = [{"id": i, "method": method} for i, method in (("b", "rl"), ("d", "seed"), ("a", "rl"), ("c", "seed"))]
    assert [rows[i]["id"] for i in seed_first(pa.Table.from_pylist(rows))] == ["c", "d", "a", "b"]


VARIANTS = [f"{BREAD} {i % 3} {'x' * (i % 5)} {i // 7}" for i in range(30)]
record_sets = st.lists(
    st.tuples(st.sampled_from(VARIANTS), st.booleans(), st.booleans()), max_size=12, unique_by=lambda item: item[0]
)


@settings(deadline=None, max_examples=25)
@given(
    drawn=record_sets,
    order=st.randoms(use_true_random=False),
    rows_per_file=st.integers(1, 12),
    at_once=st.integers(1, 16),
)
def test_twins_hang_on_the_set_of_records_alone(drawn, order, rows_per_file, at_once):
    parent = seed("Something else")
    records = [
        seed(text, unsafe) if is_seed else child(parent, text, unsafe=unsafe, categories=None)
        for text, unsafe, is_seed in drawn
    ]
    expected = components(records)

    def dropped(listed, **survey):
        drops = verdicts(NearDuplicates(CONFIG), listed, **survey)
        return {record["id"]: drop.evidence for record, drop in zip(listed, drops, strict=True) if drop}

    assert dropped(records) == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("guardrail.curation.duplicates._BANDS_AT_ONCE", at_once)
        patch.setattr("guardrail.curation.duplicates._PAIRS_AT_ONCE", 2)
        assert dropped(order.sample(records, len(records)), rows_per_file=rows_per_file) == expected


def components(records):
    """By brute force: id of each that goes to the id of the one that stays. The pairs are those that share a band."""
    index = {}
    for label in (True, False):
        of_label = [record for record in records if record["unsafe"] is label]
        signed = signatures([record["text"] for record in of_label], CONFIG)
        for one, two, _ in NearIndex(signed, CONFIG).near(signed):
            index.setdefault(of_label[one]["id"], set()).add(of_label[two]["id"])
    by_id, found = {record["id"]: record for record in records}, {}
    for start in sorted(index, key=lambda i: (by_id[i]["method"] != "seed", i)):
        reached, new = set(), {start}
        while new:
            reached |= new
            new = set().union(*(index[i] for i in new)) - reached
        for other in reached - {start} - found.keys() if start not in found else ():
            found[other] = start
    return found


def test_a_large_group_of_candidates_is_compared_with_its_first_members_only(monkeypatch):
    monkeypatch.setattr("guardrail.curation.duplicates._LEADERS", 1)
    records = [seed(BREAD + end) for end in (" a", " b", " c", " d")]
    first = min(record["id"] for record in records)
    drops = verdicts(NearDuplicates(CONFIG), records)
    assert {drop.evidence for drop in drops if drop} == {first}
    assert drops.count(None) == 1


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("permutations", [16, 128])
def test_every_threshold_that_is_accepted_works(threshold, permutations):
    config = CurationConfig(near_duplicate=threshold, permutations=permutations)
    record = seed(BREAD)
    drops = verdicts(NearDuplicates(config), [{**record, "id": "z"}, record], config=config)
    assert drops == [Drop("near duplicate", record["id"]), None]


def test_almost_all_pairs_over_the_threshold_are_found():
    texts = [" ".join(digest(str(i), str(place))[:6] for place in range(12)) for i in range(300)]
    pairs = [(text, text[: -1 - i % 20]) for i, text in enumerate(texts)]
    close = [pair for pair in pairs if jaccard(*pair) >= CONFIG.near_duplicate]
    drops = verdicts(NearDuplicates(CONFIG), [seed(text) for pair in close for text in pair])
    found = sum(map(bool, drops))
    assert len(close) > 200
    assert 0.95 * len(close) <= found <= len(close)


def test_nothing_is_a_twin_where_there_is_nothing():
    assert verdicts(NearDuplicates(CONFIG), []) == []
    assert verdicts(ExactDuplicates(), []) == []


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


# --- fidelity -----------------------------------------------------------------------------------------------------


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
        child(bread, "How can I steal a good loaf of bread from a shop?"),
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


# --- balance ------------------------------------------------------------------------------------------------------


CELL = pa.schema(
    [("row", pa.int64()), *(SCHEMA.field(name) for name in ("id", "unsafe", "categories", "method"))],
)


def cell(count, prefix, method="rl", unsafe=True, categories=("hate",)):
    return [
        {"id": f"{prefix}{i:03d}", "unsafe": unsafe, "categories": categories and list(categories), "method": method}
        for i in range(count)
    ]


def over_limit(rows, ratio):
    """Id to evidence of what is dropped."""
    drops = surplus(pa.Table.from_pylist([{**row, "row": i} for i, row in enumerate(rows)], CELL), ratio).to_pylist()
    return {rows[drop["row"]]["id"]: drop["evidence"] for drop in drops}


def test_a_full_cell_is_cut_to_its_limit_by_the_largest_ids():
    rows = cell(4, "c", method="augment") + cell(30, "a") + cell(4, "b", categories=["fraud"])
    assert over_limit(rows, 2.0) == {f"a{i:03d}": "30 in unsafe/hate/rl, limit 8" for i in range(8, 30)}


def test_transforms_are_one_method():
    rows = cell(8, "a") + [row for i in range(8) for row in cell(1, f"t{i}-", method=f"transform:{i}")]
    assert over_limit(rows, 1.0) == {}


def test_the_last_category_is_the_cells():
    rows = cell(6, "a", categories=["hate", "fraud"]) + cell(2, "b", categories=None) + cell(2, "c", categories=[])
    assert set(over_limit(rows, 1.0).values()) == {"6 in unsafe/fraud/rl, limit 5"}


def test_seeds_neither_count_nor_go():
    rows = cell(100, "s", method="seed") + cell(3, "a") + cell(3, "b", unsafe=False, categories=())
    assert over_limit(rows, 1.0) == {}
    assert over_limit(rows[:100], 1.0) == {}


@given(
    sizes=st.lists(st.integers(0, 12), max_size=6),
    ratio=st.floats(1, 5),
    order=st.randoms(use_true_random=False),
)
def test_surplus_does_not_hang_on_order(sizes, ratio, order):
    rows = [row for i, size in enumerate(sizes) for row in cell(size, f"{i}-", method=f"method-{i}")]
    over = over_limit(rows, ratio)
    assert over == over_limit(order.sample(rows, len(rows)), ratio)
    assert all(
        sum(row["id"] not in over for row in rows if row["id"].startswith(f"{i}-")) for i, n in enumerate(sizes) if n
    )


def test_a_judge_of_rows_drops_these_rows():
    drops = pa.table({"row": [7, 2], "reason": ["r", "s"], "evidence": ["seven", "two"]})
    assert ByRow(drops)(pa.table({"row": [2, 3, 7]})) == [Drop("s", "two"), None, Drop("r", "seven")]


# --- folders ------------------------------------------------------------------------------------------------------


def written(tmp_path, records):
    """The records as one numbered part, with facts."""
    part = Part(tmp_path / "records.parquet", tmp_path / "facts.parquet")
    table = numbered(records)
    pq.write_table(table.drop_columns(["signature"]), part.records)
    pq.write_table(table.select(["signature"]), part.facts)
    return part


def test_only_a_finished_folder_of_the_same_key_counts(tmp_path):
    folder = Folder(tmp_path / "01-stage")
    assert folder.manifest("k") is None
    folder.start()
    (folder.scratch / "file").touch()
    assert folder.manifest("k") is None
    folder.finish("k", kept=1)
    assert not folder.scratch.exists()
    assert folder.manifest("k") == {"key": "k", "kept": 1}
    assert folder.manifest("other") is None
    folder.start()
    assert folder.manifest("k") is None


def test_the_next_judge_sees_only_what_was_kept(tmp_path):
    part = written(tmp_path, [seed("One"), seed("Two"), seed("Three")])
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    counts = write_verdicts(lambda batch: [None, Drop("r", "e"), None], tmp_path / "a", part)
    assert counts == {"r": 1, None: 2}
    after = Part(part.records, part.facts, tmp_path / "a" / part.records.name)
    assert after.kept().schema.names == [*SCHEMA.names, "row", "signature"]
    assert after.kept(["text", "row"]).to_pydict() == {"text": ["One", "Three"], "row": [0, 2]}
    assert after.kept(["signature"])["signature"].to_pylist() == part.kept()["signature"].take([0, 2]).to_pylist()
    assert after.dropped(["text"]).to_pylist() == [{"text": "Two", "reason": "r", "evidence": "e"}]

    assert write_verdicts(lambda batch: [Drop("s", "f"), None], tmp_path / "b", after) == {"s": 1, None: 1}
    last = Part(part.records, part.facts, tmp_path / "b" / part.records.name)
    assert last.kept(["text"])["text"].to_pylist() == ["Three"]
    assert last.dropped(["text"])["text"].to_pylist() == ["One"]


def test_kept_records_are_merged_by_id_a_few_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("guardrail.curation.folders.ROWS_IN_MEMORY", 3)
    monkeypatch.setattr("guardrail.curation.folders._ROWS_PER_GROUP", 2)
    records = [seed(f"Question number {i}") for i in range(11)]
    paths = []
    for number, listed in enumerate((records[:4], records[4:4], records[4:])):
        (tmp_path / str(number)).mkdir()
        paths.append(
            write_sorted(tmp_path, written(tmp_path / str(number), listed)).rename(tmp_path / f"{number}.parquet")
        )
    merge(paths, tmp_path / "kept.parquet")
    table = pq.read_table(tmp_path / "kept.parquet")
    assert table.schema.equals(SCHEMA)
    assert table["id"].to_pylist() == sorted(record["id"] for record in records)


def test_nothing_is_merged_to_an_empty_file(tmp_path):
    merge([], tmp_path / "kept.parquet")
    assert pq.read_table(tmp_path / "kept.parquet").schema.equals(SCHEMA)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read records from .*none\.parquet"):
        check_records(tmp_path / "none.parquet")

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from guardrail.curation import CurationConfig
from guardrail.curation.balance import surplus
from guardrail.curation.contamination import Decontamination, Index
from guardrail.curation.content import Canonical, LabelAgreement, Quality, label_drop, labels_by_id, quality_drop
from guardrail.curation.duplicates import ExactDuplicates, NearDuplicates, repeated, twins
from guardrail.curation.facts import FACTS, from_bytes, minhash, with_facts
from guardrail.curation.fidelity import LabelFidelity
from guardrail.curation.folders import INPUT_SCHEMA, Folder, only_kept, with_verdicts, write_numbered
from guardrail.curation.pipeline import stages
from guardrail.curation.stage import Drop
from guardrail.records import SCHEMA, check_records, make_record, to_table, write_records
from guardrail.transforms import transformed

CONFIG = CurationConfig()
BREAD = "How do I bake a loaf of rye bread at home without a stand mixer or a dutch oven"


def numbered(records):
    """The records as the pipeline hands them to a judge."""
    table = to_table(records).append_column("row", pa.array(range(len(records)), pa.int64()))
    return with_facts(CONFIG, table)


class Rows:
    """A survey of a table in memory."""

    def __init__(self, table, inputs=None):
        self.of_kept, self.of_inputs = table, table if inputs is None else inputs

    def kept(self, columns):
        return self.of_kept.select(columns).to_pylist()

    def computed(self, function):
        return function(self.of_kept).to_pylist()

    def inputs(self, columns):
        return self.of_inputs.select(columns).to_pylist()


def verdicts(stage, records, inputs=None):
    table = numbered(records)
    return stage.prepare(Rows(table, inputs and numbered(inputs)))(table)


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


equals = st.lists(
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


@given(rows=equals, order=st.randoms(use_true_random=False))
def test_which_equal_stays_does_not_hang_on_order(rows, order):
    def kept(listed):
        numbered_rows = [{**row, "row": number} for number, row in enumerate(listed)]
        drops = repeated(numbered_rows)
        stay = [row for row in numbered_rows if row["row"] not in drops]
        return sorted((row["id"], row["unsafe"], row["method"], row["digest"]) for row in stay)

    shuffled = order.sample(rows, len(rows))
    assert kept(rows) == kept(shuffled)
    assert len({row[0] for row in kept(rows)}) == len(kept(rows))


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
    chain = [" ".join(stem[start : start + 30]) for start in (0, 3, 6)]
    signatures = [minhash(text, config) for text in chain]
    assert signatures[0].jaccard(signatures[2]) < 0.78 <= signatures[0].jaccard(signatures[1])
    rows = [
        {"id": str(i), "unsafe": True, "method": "rl", "signature": signature.hashvalues.tobytes()}
        for i, signature in enumerate(signatures)
    ]
    assert twins(rows, config) == {"1": "0", "2": "0"}


phrases = st.lists(st.sampled_from([f"{BREAD} {i % 3} {'x' * (i % 5)} {i // 7}" for i in range(30)]), max_size=10)


@settings(deadline=None, max_examples=40)
@given(texts=phrases, labels=st.integers(0, 2**10 - 1), seeds=st.integers(0, 2**10 - 1), order=st.randoms())
def test_twins_do_not_hang_on_order(texts, labels, seeds, order):
    rows = [
        {
            "id": f"{i:02d}",
            "unsafe": bool(labels >> i & 1),
            "method": "seed" if seeds >> i & 1 else "rl",
            "signature": minhash(text, CONFIG).hashvalues.tobytes(),
        }
        for i, text in enumerate(texts)
    ]
    found = twins(rows, CONFIG)
    assert found == twins(order.sample(rows, len(rows)), CONFIG)
    by_id = {row["id"]: row for row in rows}
    for dropped, stays in found.items():
        assert stays not in found
        assert by_id[stays]["unsafe"] == by_id[dropped]["unsafe"]
        assert by_id[stays]["method"] == "seed" or by_id[dropped]["method"] != "seed"


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("permutations", [16, 128])
def test_every_threshold_that_is_accepted_works(threshold, permutations):
    config = CurationConfig(near_duplicate=threshold, permutations=permutations)
    signature = minhash(BREAD, config).hashvalues.tobytes()
    rows = [{"id": i, "unsafe": True, "method": "rl", "signature": signature} for i in "ab"]
    assert twins(rows, config) == {"b": "a"}


def test_almost_all_pairs_over_the_threshold_are_found():
    pairs = [(f"{BREAD} number {i}", f"{BREAD} number {i} or {i % 3}") for i in range(0, 4000, 40)]
    signed = [tuple(minhash(f"{i} {text}", CONFIG) for text in pair) for i, pair in enumerate(pairs)]
    close = [(one, two) for one, two in signed if one.jaccard(two) >= CONFIG.near_duplicate]
    found = 0
    for pair in close:
        rows = [
            {"id": i, "unsafe": True, "method": "rl", "signature": signature.hashvalues.tobytes()}
            for i, signature in zip("ab", pair, strict=True)
        ]
        found += twins(rows, CONFIG) == {"b": "a"}
    assert len(close) > 50
    assert found >= 0.95 * len(close)


def test_signatures_survive_storage():
    table = with_facts(CONFIG, to_table([seed(BREAD)]))
    assert from_bytes(table["signature"][0].as_py()).jaccard(minhash(BREAD.upper(), CONFIG)) == 1.0
    assert [table.schema.field(field.name) for field in FACTS] == list(FACTS)


# --- quality ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Hello", "length"),
        ("word " * 401, "length"),
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("Here is the rewritten message: how to bake bread", "meta-text"),
        ("How do I bake bread?", None),
        ("How do", None),
    ],
)
def test_what_is_no_request_is_dropped(text, reason):
    drop = quality_drop(text, CONFIG)
    assert (drop and drop.reason) == reason


def test_what_people_wrote_is_not_judged():
    assert verdicts(Quality(CONFIG), [seed("Hello"), child(seed("Hi there"), "Hello")]) == [
        None,
        Drop("length", "1 words"),
    ]


def test_a_transforms_text_is_not_judged_by_its_words():
    encoded = transformed(seed("How do I bake bread?"), "base64", 0)
    assert verdicts(Quality(CONFIG), [encoded]) == [None]


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
    row = {"id": "a", "unsafe": True, "categories": None, "method": "rl"}
    assert labels_by_id([row, {**row, "unsafe": False}]) == {}
    assert labels_by_id([row, {**row, "unsafe": False, "method": "seed"}]) == {"a": (False, None)}
    assert labels_by_id([row, {**row, "categories": ["hate"]}]) == {"a": (True, ["hate"])}


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
        None,
    ]


def test_nothing_is_embedded_where_nothing_is_judged(monkeypatch):
    monkeypatch.delattr("guardrail.curation.fidelity._embedder")
    bread = seed(BREAD)
    assert verdicts(LabelFidelity(CONFIG), [bread, child(bread, "Anything else.", method="rl")]) == [None, None]


# --- decontamination ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "response", "reason"),
    [
        (BREAD.upper() + "\u200b", None, "equals an evaluation text"),
        (BREAD, "With flour", "equals an evaluation text"),
        ("Tell me: how do I bake a loaf of rye?", None, "shares words with an evaluation text"),
        ("Tell me", "how do I bake a loaf of rye", "shares words with an evaluation text"),
        ("How do I bake a loaf of wheat", None, None),
        ("Please tell my friend: what is rye good for, and wheat?", None, "shares words with an evaluation text"),
        ("What is wheat good for?", None, None),
        ("Short one!", None, "equals an evaluation text"),
        ("A brief one", None, None),
    ],
)
def test_evaluation_texts_are_kept_out(text, response, reason):
    evaluation = {"bakery": [("7", BREAD), ("8", "What is rye good for?")], "short": [("1", "short  one!")]}
    (drop,) = verdicts(Decontamination(CONFIG, evaluation), [seed(text, response=response)])
    assert (drop and drop.reason) == reason
    if drop:
        assert drop.evidence.startswith("short/1" if "Short" in text else "bakery/8" if "good" in text else "bakery/7")


def test_a_near_duplicate_without_a_common_run_of_words_is_found():
    word = "antidisestablishmentarianism"
    evaluation = {"long": [("1", f"{word} {word} of seven words, is it?")]}
    (drop,) = verdicts(Decontamination(CONFIG, evaluation), [seed(f"{word} {word} of seven words, is its")])
    assert drop
    assert drop.reason == "nearly an evaluation text"
    assert drop.evidence.startswith("long/1: ")


def test_texts_of_one_item_id_are_all_known():
    texts = [BREAD, "Which birds can be heard at night in a small town by the sea"]
    index = Index(CONFIG, {"set": [("1", text) for text in texts]})
    assert len(index.signed) == 2
    assert all(index.drop(text, None, minhash(text, CONFIG)) for text in texts)


def test_other_evaluation_texts_are_other_settings():
    one, two = (Decontamination(CONFIG, {"set": [("1", text)]}).settings for text in ("a", "b"))
    assert one != two


# --- balance ------------------------------------------------------------------------------------------------------


def cell(count, prefix, method="rl", unsafe=True, categories=("hate",)):
    return [
        {"id": f"{prefix}{i:03d}", "unsafe": unsafe, "categories": list(categories), "method": method}
        for i in range(count)
    ]


def test_a_full_cell_is_cut_to_its_limit_by_the_largest_ids():
    rows = cell(30, "a") + cell(4, "b", categories=["fraud"]) + cell(4, "c", method="augment")
    assert sorted(surplus(rows, 2.0)) == [f"a{i:03d}" for i in range(8, 30)]


def test_transforms_are_one_method():
    rows = cell(8, "a") + [row for i in range(8) for row in cell(1, f"t{i}-", method=f"transform:{i}")]
    assert surplus(rows, 1.0) == {}


def test_seeds_neither_count_nor_go():
    rows = cell(100, "s", method="seed") + cell(3, "a") + cell(3, "b", unsafe=False, categories=())
    assert surplus(rows, 1.0) == {}


@given(
    sizes=st.lists(st.integers(0, 12), max_size=6),
    ratio=st.floats(1, 5),
    order=st.randoms(use_true_random=False),
)
def test_surplus_does_not_hang_on_order(sizes, ratio, order):
    rows = [row for i, size in enumerate(sizes) for row in cell(size, f"{i}-", method=f"method-{i}")]
    over = surplus(rows, ratio)
    assert over == surplus(order.sample(rows, len(rows)), ratio)
    assert all(
        sum(row["id"] not in over for row in rows if row["id"].startswith(f"{i}-")) for i, n in enumerate(sizes) if n
    )


# --- folders ------------------------------------------------------------------------------------------------------


def judged(tmp_path, records, judge):
    table = with_verdicts(judge, numbered(records))
    folder = Folder(tmp_path / "01-stage", table.schema)
    folder.start()
    pq.write_table(table, folder.path / "part.parquet")
    return folder


def test_only_a_finished_folder_of_the_same_key_counts(tmp_path):
    folder = Folder(tmp_path / "01-stage", SCHEMA)
    assert folder.manifest("k") is None
    folder.start()
    assert folder.manifest("k") is None
    folder.finish("k", kept=1)
    assert folder.manifest("k") == {"key": "k", "kept": 1}
    assert folder.manifest("other") is None
    folder.start()
    assert folder.manifest("k") is None


def test_kept_records_are_written_in_parts_sorted_by_id(tmp_path, monkeypatch):
    monkeypatch.setattr("guardrail.curation.folders.ROWS_IN_MEMORY", 3)
    records = [seed(f"Question number {i}") for i in range(11)]
    folder = judged(tmp_path, records, lambda batch: [Drop("r", "e"), *[None] * (batch.num_rows - 1)])
    assert folder.write_kept(tmp_path / "kept.parquet") == 10
    table = pq.read_table(tmp_path / "kept.parquet")
    assert table.schema.equals(SCHEMA)
    assert table["id"].to_pylist() == sorted(record["id"] for record in records[1:])
    assert folder.dropped(["id", "reason"]).to_pylist() == [{"id": records[0]["id"], "reason": "r"}]
    assert folder.verdicts() == {"r": 1, None: 10}


def test_the_next_judge_sees_only_what_was_kept(tmp_path):
    table = with_verdicts(lambda batch: [None, Drop("r", "e")], numbered([seed("One"), seed("Two")]))
    assert only_kept(table)["text"].to_pylist() == ["One"]


def test_an_empty_folder_has_no_rows(tmp_path):
    folder = Folder(
        tmp_path / "01-stage", pa.schema([*SCHEMA, *FACTS, ("reason", pa.string()), ("evidence", pa.string())])
    )
    folder.start()
    assert folder.verdicts() == {}
    assert list(folder.rows(["id"])) == []
    assert folder.write_kept(tmp_path / "kept.parquet") == 0
    assert pq.read_table(tmp_path / "kept.parquet").schema.equals(SCHEMA)


def test_numbers_go_on_across_files_and_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("guardrail.curation.folders.ROWS_PER_FILE", 2)
    write_records([seed(f"Question {i}") for i in range(5)], tmp_path / "a.parquet")
    write_records([seed("Another question")], tmp_path / "b.parquet")
    folder = Folder(tmp_path / "00-input", INPUT_SCHEMA)
    folder.start()
    assert write_numbered([tmp_path / "a.parquet", tmp_path / "b.parquet"], folder.path) == 6
    assert len(folder.files()) == 4
    assert [row["row"] for row in folder.rows(["row"])] == list(range(6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop_columns(["unsafe", "scores"]), "lacks the columns unsafe, scores"),
        (lambda table: table.set_column(3, "unsafe", pa.array(["perhaps"])), "column 'unsafe'"),
        (lambda table: table.set_column(1, "text", pa.array([None], pa.string())), "column 'text': 1 of 1 values"),
    ],
)
def test_what_is_no_record_file_is_named_with_its_column(tmp_path, change, message):
    path = tmp_path / "odd.parquet"
    pq.write_table(
        change(to_table([seed("A question")]).cast(pa.schema([f.with_nullable(True) for f in SCHEMA]))), path
    )

    def read():
        check_records(path)
        write_numbered([path], tmp_path)

    with pytest.raises(ValueError, match=message) as caught:
        read()
    assert "odd.parquet" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read records from .*none\.parquet"):
        check_records(tmp_path / "none.parquet")

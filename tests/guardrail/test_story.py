import json

import pyarrow as pa
import pytest

from guardrail.curation.intake import SET_ASIDE
from guardrail.curation.pipeline import LEDGER
from guardrail.curation.story import story
from guardrail.records import write_records, write_table
from tests.guardrail.surveys import child, seed

STAGES = ["canonical", "exact", "near", "quality", "label"]


SEED = seed("Bake bread")
CHILD, GRANDCHILD = child(SEED, "Bake a loaf"), child(child(SEED, "Bake a loaf"), "Bake one loaf", "rl")
TWIN, TRIPLET = child(SEED, "Bake bread please"), child(SEED, "Bake bread pleased")
ORPHAN = {**child(SEED, "Bake rolls"), "parent_id": "0" * 16}


@pytest.fixture
def curated(tmp_path):
    def dropped(record, stage, reason, evidence):
        fields = {name: record[name] for name in LEDGER.names if name in record}
        return {**fields, "stage": stage, "reason": reason, "evidence": evidence}

    ledger = [
        dropped(SEED, "exact", "duplicate", SEED["id"]),
        dropped(TRIPLET, "near", "near duplicate", TWIN["id"]),
        dropped(TWIN, "near", "near duplicate", f"{SEED['id']}: 0.91"),
        dropped(CHILD, "quality", "gibberish", "-4.2 nats a letter"),
    ]
    aside = [{"file": "web.parquet", "row": 7, "reason": "empty text", "id": "f" * 16}]
    write_records([SEED, GRANDCHILD, ORPHAN], tmp_path / "kept.parquet")
    write_table(pa.Table.from_pylist(ledger, LEDGER), tmp_path / "ledger.parquet")
    write_table(pa.Table.from_pylist(aside, SET_ASIDE), tmp_path / "set_aside.parquet")
    (tmp_path / "funnel.json").write_text(json.dumps([{"stage": stage} for stage in ("intake", *STAGES)]))
    return tmp_path


def test_a_record_that_was_kept(curated):
    assert story(GRANDCHILD["id"], curated) == [
        f"{GRANDCHILD['id']}: kept",
        "  safe, rl, from mine",
        "  passed: intake, canonical, exact, near, quality, label",
        f"made from {CHILD['id']}: dropped by quality: gibberish (-4.2 nats a letter)",
        f"made from {SEED['id']}: kept; dropped by exact: duplicate ({SEED['id']})",
    ]


def test_a_twin_is_followed_to_the_one_that_stayed(curated):
    lines = story(TRIPLET["id"], curated)
    assert lines[0] == f"{TRIPLET['id']}: dropped by near: near duplicate ({TWIN['id']})"
    assert lines[2] == "  passed: intake, canonical, exact"
    assert lines[3:5] == [
        f"  {TWIN['id']}: dropped by near: near duplicate ({SEED['id']}: 0.91)",
        f"  {SEED['id']}: kept",
    ]


def test_copies_and_children_are_told(curated):
    lines = story(SEED["id"], curated)
    assert [line for line in lines if line.startswith(SEED["id"])] == [
        f"{SEED['id']}: kept",
        f"{SEED['id']}: dropped by exact: duplicate ({SEED['id']})",
    ]
    assert "made from it: 3, of which 0 kept" in lines
    assert f"  {CHILD['id']} (paraphrase): dropped by quality: gibberish (-4.2 nats a letter)" in lines


def test_a_parent_that_was_no_input_is_named(curated):
    assert story(ORPHAN["id"], curated)[-1] == f"made from {'0' * 16}: not among the records"


def test_a_row_that_was_set_aside(curated):
    assert story("f" * 16, curated) == [f"{'f' * 16}: set aside on the way in, web.parquet row 7: empty text"]


def test_what_nobody_knows_and_where_nothing_is_are_errors(curated, tmp_path):
    with pytest.raises(ValueError, match="no record 'abc'"):
        story("abc", curated)
    (curated / "ledger.parquet").unlink()
    with pytest.raises(ValueError, match="is not what curation wrote.*ledger"):
        story(SEED["id"], curated)
    with pytest.raises(ValueError, match="is not what curation wrote"):
        story(SEED["id"], tmp_path / "absent")

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.records import (
    SCHEMA,
    check_records,
    from_table,
    make_record,
    read_records,
    record_id,
    to_table,
    write_records,
)

texts = st.text(min_size=1).filter(lambda text: text.strip())


def test_lineage_leads_back_to_the_seed():
    seed = make_record("How do I bake bread?", unsafe=False, source="mine", categories=[], licence="MIT")
    child = make_record("Tell me how to bake bread", unsafe=False, source="mine", parent=seed, method="paraphrase")
    grandchild = make_record("Bread baking?", unsafe=False, source="mine", parent=child, method="augment")
    assert seed["seed_id"] == seed["id"] and seed["parent_id"] is None
    assert child["parent_id"] == seed["id"] and grandchild["parent_id"] == child["id"]
    assert grandchild["seed_id"] == seed["id"] and grandchild["licence"] == "MIT"


def test_a_category_brings_its_parent():
    assert make_record("x", unsafe=True, source="s", categories=["hate/threatening"])["categories"] == [
        "hate",
        "hate/threatening",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": " \n"}, "empty text"),
        ({"categories": ["hat"]}, "did you mean 'hate'"),
        ({"unsafe": False, "categories": ["hate"]}, "benign record"),
        ({"colour": "red"}, "not fields of a record: colour"),
    ],
)
def test_what_is_no_record_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_record(**{"text": "x", "unsafe": True, "source": "s", **changes})


@given(texts, st.none() | texts)
def test_ids_do_not_depend_on_case_and_spacing(text, response):
    assert record_id(f"  {text}\n", response) == record_id(text, response)


@given(st.lists(st.tuples(texts, st.booleans(), st.dictionaries(st.sampled_from("ab"), st.floats(0, 1)))))
def test_records_survive_the_table(rows):
    try:
        records = [make_record(t, unsafe=u, source="s", scores=s) for t, u, s in rows]
        table = to_table(records)
    except UnicodeEncodeError:  # a lone surrogate is no text that parquet could hold
        return
    assert table.schema == SCHEMA
    assert from_table(table) == records


def test_files_are_whole_and_others_are_refused(tmp_path):
    path = tmp_path / "a" / "records.parquet"
    records = [make_record("x", unsafe=True, source="s")]
    write_records(records, path)
    assert read_records(path) == records
    assert [p.name for p in path.parent.iterdir()] == ["records.parquet"]
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="lacks the columns id, response"):
        read_records(tmp_path / "other.parquet")
    twice = pq.read_table(path)
    pq.write_table(twice.append_column("text", twice["text"]), tmp_path / "twice.parquet")
    with pytest.raises(ValueError, match=r"twice\.parquet has two columns named 'text'"):
        read_records(tmp_path / "twice.parquet")
    with pytest.raises(ValueError, match="cannot read records"):
        read_records(tmp_path / "absent.parquet")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read records from .*none\.parquet"):
        check_records(tmp_path / "none.parquet")

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.curation import intake
from guardrail.curation.intake import LONGEST, SET_ASIDE, checked, contradictory, intake_entry, take_in
from guardrail.records import SCHEMA, make_record, record_id, to_table, write_records, write_table
from tests.guardrail.surveys import seed


def table_with(name, values, records=None):
    """Records whose column `name` has these values."""
    records = records or [seed(f"question {i}") for i in range(len(values))]
    if name in ("text", "response"):
        records = [with_id_for(record, name, value) for record, value in zip(records, values, strict=True)]
    table = to_table(records)
    return table.set_column(table.schema.get_field_index(name), name, values)


def with_id_for(record, name, value):
    """The record with the id that it has once its text or response is this Arrow value, if that can be one."""
    try:
        value = value.as_py()
    except UnicodeDecodeError:
        return record
    value = value.decode(errors="replace") if isinstance(value, bytes) else value
    fields = {"text": record["text"], "response": record["response"], name: value}
    return {**record, "id": record_id(**fields)} if isinstance(fields["text"], str) else record


def strings(*values):
    """A string column of these bytes, whatever they are: Arrow does not look."""
    offsets = pa.array([0, *(sum(map(len, values[: i + 1])) for i in range(len(values)))], pa.int32())
    return pa.Array.from_buffers(pa.string(), len(values), [None, offsets.buffers()[1], pa.py_buffer(b"".join(values))])


def reasons(table, **options):
    fitting, aside = checked(table, **options)
    assert fitting.schema.equals(SCHEMA)
    fitting.validate(full=True)
    assert fitting.num_rows + aside.num_rows == table.num_rows
    return dict(zip(aside["place"].to_pylist(), aside["reason"].to_pylist(), strict=True))


# --- one batch ----------------------------------------------------------------------------------------------------


def test_good_rows_pass_as_they_are():
    records = [seed("Hello"), seed("Hurt me", True, categories=["violence"]), seed("Ça va\u200b?", response="Oui")]
    records[0]["scores"] = {"judge:a": 0.5}
    table = to_table(records)
    fitting, aside = checked(table)
    assert fitting.equals(table) and aside.num_rows == 0


def test_no_rows_are_no_problem():
    assert reasons(SCHEMA.empty_table()) == {}


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("text", ["a b", None, "", " \n\u2003"], {1: "text is missing", 2: "empty text", 3: "empty text"}),
        ("unsafe", [1, 0, 2], {2: "unsafe is neither true nor false"}),
        ("unsafe", [1.0, None, 0.5], {1: "unsafe is missing", 2: "unsafe is neither true nor false"}),
        ("unsafe", ["true", "False", "maybe", "1"], {2: "unsafe is neither true nor false"}),
        ("round", ["0", "first"], {1: "round is no whole number"}),
        ("round", [0, 2**40], {1: "round is no whole number"}),
        ("seed_id", [None, "x"], {0: "seed_id is missing"}),
        ("response", ["fine", None, "x" * (LONGEST + 1)], {2: "response over 1,000,000 bytes"}),
    ],
)
def test_what_does_not_fit_is_named(name, values, expected):
    assert reasons(table_with(name, pa.array(values))) == expected


def test_a_text_may_be_long_but_not_endless():
    texts = ["x" * LONGEST, "é" * (LONGEST // 2 + 1), "y" * 10_000_000]
    assert reasons(table_with("text", pa.array(texts))) == dict.fromkeys((1, 2), "text over 1,000,000 bytes")


def test_categories_are_ours_and_of_unsafe_records():
    records = [seed(f"text {i}", unsafe=i < 4) for i in range(6)]
    values = [["fraud"], ["fraud", "theft"], None, ["hate", None], [], ["fraud"]]
    table = table_with("categories", pa.array(values, pa.list_(pa.string())), records)
    unknown = "unknown category"
    assert reasons(table) == {1: unknown, 3: unknown, 5: "categories of a benign record"}


def test_categories_come_with_their_parents():
    records = [seed(f"text {i}", unsafe=i < 4) for i in range(5)]
    values = [["hate/threatening"], ["violence/graphic", "fraud", "violence"], [], None, None]
    table = table_with("categories", pa.array(values, pa.list_(pa.string())), records)
    closed = [["hate", "hate/threatening"], ["violence", "violence/graphic", "fraud"], [], None, None]
    assert checked(table)[0]["categories"].to_pylist() == closed


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string())]
)
def test_any_kind_of_string_is_one(kind):
    texts = pa.array(["a b", "c d"])
    column = texts.dictionary_encode() if pa.types.is_dictionary(kind) else texts.cast(kind)
    assert reasons(table_with("text", column)) == {}


@pytest.mark.parametrize("name", ["text", "response", "source", "method", "language"])
def test_bytes_that_are_no_utf8_are_found_in_string_columns(name):
    column = strings(b"good", b"\xff\xfe", "né".encode(), b"\xed\xa0\x80", b"cut \xc3")
    assert reasons(table_with(name, column)) == dict.fromkeys((1, 3, 4), f"{name} is not UTF-8")


def test_bytes_that_are_no_utf8_are_found_in_binary_columns_lists_and_maps():
    binary = pa.array([b"good", b"\xff"])
    assert reasons(table_with("text", binary)) == {1: "text is not UTF-8"}
    offsets = pa.array([0, 1, 2], pa.int32())
    records = [seed("a", unsafe=True), seed("b", unsafe=True)]
    lists = pa.ListArray.from_arrays(offsets, strings(b"fraud", b"\xff"))
    assert reasons(table_with("categories", lists, records)) == {1: "categories is not UTF-8"}
    maps = pa.MapArray.from_arrays(offsets, strings(b"\xff", b"judge:a"), pa.array([0.0, 1.0]))
    assert reasons(table_with("scores", maps, records)) == {0: "scores is not UTF-8"}


def test_the_id_of_a_row_is_told_where_it_has_one():
    _, aside = checked(table_with("id", strings(b"\xff", b"a"), [seed("x"), {**seed("y"), "text": ""}]))
    assert aside["id"].to_pylist() == [None, "a"]
    assert aside["reason"].to_pylist() == ["id is not UTF-8", "empty text"]


def test_an_id_is_that_of_text_and_response():
    answered = seed("Hello", response="Good day")
    records = [answered, {**answered, "text": "Hello you"}, {**answered, "response": None}, {**answered, "id": "0"}]
    assert reasons(to_table(records)) == dict.fromkeys((1, 2, 3), "id is not that of its text and response")
    assert reasons(to_table([{**answered, "text": " hello\u200b"}])) == {}  # another spelling of it


def test_a_column_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="'text'.*struct"):
        checked(table_with("text", pa.array([{"a": 1}])))


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from([b"plain text", "é ü".encode(), b"\xc3", b"\xff\xff", b"  "]), max_size=40),
    st.integers(0, 3),
)
def test_exactly_the_rows_that_are_wrong_are_set_aside(values, offset):
    def wrong(value):
        try:
            return not value.decode().strip()
        except UnicodeDecodeError:
            return True

    column = strings(*[b"ok"] * offset, *values).slice(offset)  # a slice's buffers hold more than its rows
    found = reasons(table_with("text", column))
    assert set(found) == {i for i, value in enumerate(values) if wrong(value)}


# --- files --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "numbered").mkdir()
    return tmp_path / "numbered"


def numbered(folder):
    return pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("*.parquet")))


def test_the_rest_goes_on_under_numbers_of_its_own(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(intake, "_ROWS_AT_ONCE", 3)
    paths = [tmp_path / "one.parquet", tmp_path / "two.parquet"]
    records = [seed(f"question {i}") for i in range(20)]
    for path, part in zip(paths, (records[:9], records[9:]), strict=True):
        texts = [None if record in (records[1], records[8], records[9]) else record["text"] for record in part]
        pq.write_table(table_with("text", pa.array(texts), part), path)
    assert take_in(paths, folder, tmp_path / "aside.parquet", rows_per_file=4) == 17

    kept = numbered(folder)
    assert kept["row"].to_pylist() == list(range(17))
    assert kept["text"].to_pylist() == [r["text"] for i, r in enumerate(records) if i not in (1, 8, 9)]
    assert [pq.read_metadata(path).num_rows for path in sorted(folder.glob("*"))] == [4, 4, 4, 4, 1]
    aside = pq.read_table(tmp_path / "aside.parquet")
    assert aside.schema.equals(SET_ASIDE)
    assert [(row["file"], row["row"], row["id"]) for row in aside.to_pylist()] == [
        (str(paths[0]), 2, records[1]["id"]),
        (str(paths[0]), 9, records[8]["id"]),
        (str(paths[1]), 1, records[9]["id"]),
    ]


def test_long_texts_make_smaller_files(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(intake, "_BYTES_PER_FILE", 50_000)
    write_records([seed(f"{i} " * 10_000) for i in range(10)], tmp_path / "in.parquet")
    assert take_in([tmp_path / "in.parquet"], folder, tmp_path / "aside.parquet") == 10
    assert {pq.read_metadata(path).num_rows for path in folder.iterdir()} == {2}
    assert numbered(folder)["row"].to_pylist() == list(range(10))


def test_a_file_with_nothing_to_set_aside_says_so(tmp_path, folder):
    write_records([], tmp_path / "in.parquet")
    assert take_in([tmp_path / "in.parquet"], folder, tmp_path / "aside.parquet") == 0
    assert list(folder.iterdir()) == []
    assert pq.read_table(tmp_path / "aside.parquet").equals(SET_ASIDE.empty_table())


def test_files_of_which_no_row_fits_are_refused_with_the_first_reason(tmp_path, folder):
    table = table_with("unsafe", pa.array([None, None], pa.bool_()))
    pq.write_table(table, tmp_path / "in.parquet")
    with pytest.raises(ValueError, match=r"none of 2 rows fits.*in\.parquet, row 1: unsafe is missing"):
        take_in([tmp_path / "in.parquet"], folder, tmp_path / "aside.parquet")
    assert not (tmp_path / "aside.parquet").exists()


def test_the_funnel_counts_what_was_set_aside_by_reason(tmp_path):
    aside = tmp_path / "aside.parquet"
    reasons = (
        ["empty text"] * 3 + ["round is missing"] + [f"labelled otherwise by {i}" for i in range(12) for _ in "ab"]
    )
    rows = [{"file": "a", "row": row, "reason": reason, "id": None} for row, reason in enumerate(reasons, 1)]
    write_table(pa.Table.from_pylist(rows, SET_ASIDE), aside)
    entry = intake_entry(aside, 100)
    assert (entry["stage"], entry["in"], entry["kept"]) == ("intake", 128, 100)
    listed = list(entry["reasons"].items())
    assert listed[0] == ("empty text", 3) and listed[-1] == ("4 other reasons", 7) and len(listed) == 11
    assert sum(entry["reasons"].values()) == entry["in"] - entry["kept"]
    write_table(SET_ASIDE.empty_table(), aside)
    assert intake_entry(aside, 5) == {"stage": "intake", "in": 5, "kept": 5, "reasons": {}}


def test_people_who_contradict_each_other_are_set_aside_with_what_grew_from_them(tmp_path, folder):
    bread, cake = seed("Bake bread"), seed("Bake cake")
    copy = make_record("bake bread", unsafe=True, source="mine", parent=cake, method="rl")
    turned = make_record("bake cake", unsafe=True, source="mine", parent=bread, method="rl")
    paths = [tmp_path / "one.parquet", tmp_path / "two.parquet"]
    write_records([bread, cake, copy], paths[0])
    write_records([seed("BAKE bread", unsafe=True), turned], paths[1])
    assert contradictory(paths)["id"].to_pylist() == [bread["id"]]

    assert take_in(paths, folder, tmp_path / "aside.parquet") == 1
    assert numbered(folder)["text"].to_pylist() == ["Bake cake"]
    aside = pq.read_table(tmp_path / "aside.parquet").to_pylist()
    assert [(row["row"], row["reason"]) for row in aside] == [
        *((row, "contradictory labels") for row in (1, 3, 1)),
        (2, "its seed has contradictory labels"),
    ]


def test_an_edited_row_that_kept_its_id_does_no_harm_to_the_original(tmp_path, folder):
    bread = seed("Bake bread")
    rolls = make_record("Bake rolls", unsafe=False, source="mine", parent=bread, method="paraphrase")
    paths = [tmp_path / "original.parquet", tmp_path / "edited.parquet"]
    write_records([bread, rolls], paths[0])
    write_records([seed("Bake cake"), {**bread, "text": "Burn the bread", "unsafe": True}], paths[1])
    assert take_in(paths, folder, tmp_path / "aside.parquet") == 3
    assert numbered(folder)["text"].to_pylist() == ["Bake bread", "Bake rolls", "Bake cake"]
    (aside,) = pq.read_table(tmp_path / "aside.parquet").to_pylist()
    assert (aside["file"], aside["row"]) == (str(paths[1]), 2)
    assert aside["reason"] == "id is not that of its text and response"


def test_the_label_of_trusted_sources_outweighs_others(tmp_path, folder):
    def labelled(text, unsafe, source):
        return make_record(text, unsafe=unsafe, source=source)

    mine = [labelled("Bake bread", False, "mine:z"), labelled("Bake bread", False, "mine:a")]
    agreed = labelled("BAKE bread", False, "public")
    grown = make_record("Bake rolls", unsafe=False, source="mine:a", parent=mine[0], method="paraphrase")
    divided = [labelled("Bake cake", False, "mine:a"), labelled("Bake cake", True, "mine:b")]
    paths = [tmp_path / "one.parquet", tmp_path / "two.parquet"]
    write_records([labelled("bake bread", True, "public"), agreed, *divided], paths[0])
    write_records([*mine, grown], paths[1])

    assert take_in(paths, folder, tmp_path / "aside.parquet", trusted_sources=("mine:", "ours")) == 4
    assert numbered(folder)["text"].to_pylist() == ["BAKE bread", "Bake bread", "Bake bread", "Bake rolls"]
    aside = pq.read_table(tmp_path / "aside.parquet").to_pylist()
    assert [(row["row"], row["reason"], row["id"]) for row in aside] == [
        (1, "labelled otherwise by mine:a", agreed["id"]),
        *((row, "contradictory labels", divided[0]["id"]) for row in (3, 4)),
    ]


@pytest.mark.parametrize("damage", ["absent", "empty", "no parquet", "cut", "a folder", "a column less", "a struct"])
def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path, folder, damage):
    good, path = tmp_path / "good.parquet", tmp_path / "bad.parquet"
    write_records([seed(f"question {i}") for i in range(50)], good)
    data = good.read_bytes()
    if damage in ("empty", "no parquet", "cut"):
        # The end, where parquet has its schema, is whole: the damage shows as the rows are read.
        path.write_bytes({"empty": b"", "no parquet": b"text,unsafe\n", "cut": b"\0" * 3000 + data[3000:]}[damage])
    elif damage == "a folder":
        path.mkdir()
    elif damage == "a column less":
        pq.write_table(pq.read_table(good).drop_columns(["method"]), path)
    elif damage == "a struct":
        pq.write_table(table_with("unsafe", pa.array([{"a": 1}])), path)
    with pytest.raises(ValueError, match="bad.parquet"):
        take_in([good, path], folder, tmp_path / "aside.parquet")
    assert not (tmp_path / "aside.parquet").exists()

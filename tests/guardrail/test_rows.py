"""Files of rows, one row at a time: what is read before a file breaks, and bytes that are no UTF-8."""

import gzip
import json
import os
import tempfile
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.rows import read_rows


def test_rows_before_the_place_where_a_file_breaks_are_read(tmp_path):
    whole = gzip.compress("".join(f'{{"text": "text {number**7}"}}\n' for number in range(9_000)).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    rows = read_rows(tmp_path / "cut.jsonl.gz")
    assert next(rows).values == {"text": "text 0"}
    with pytest.raises(ValueError, match="cannot read .*cut.jsonl.gz"):
        list(rows)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"\xef\xbb\xbf\r\ntext\r\na\r\n\r\nb\r\n"),
        ("old-mac.csv", b"text\ra\rb\r"),
        ("a.tsv", b'text\na\n"b"'),
        ("a.jsonl", b'\xef\xbb\xbf\n\n{"text": "a"}\r\n{"text": "b"}'),
        ("a.json", b'\xef\xbb\xbf \n[{"text": "a"}, {"text": "b"}]'),
        ("lines.json", b'{"text": "a"}\n{"text": "b"}\n'),
    ],
)
def test_marks_and_spaces_around_rows_are_none(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert [row.values for row in read_rows(tmp_path / name)] == [{"text": "a"}, {"text": "b"}]


def test_a_json_string_and_a_cell_hold_line_ends_of_any_kind(tmp_path):
    text = "a\u2028b\x85c\x0bd\re"
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text.replace("\r", "")}, ensure_ascii=False) + "\n")
    (tmp_path / "a.csv").write_bytes(f'text\r\n"{text}"\r\n'.encode())
    assert [row.values["text"] for row in read_rows(tmp_path / "a.jsonl")] == [text.replace("\r", "")]
    assert [row.values["text"] for row in read_rows(tmp_path / "a.csv")] == [text]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"text\na\n\xff\n"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n'),
        ("a.json", b'[{"text": "a"}, {"text": "\xff"}]'),
        ("lines.json", b'{"text": "a"}\n{"text": "\xff"}'),
    ],
)
def test_bytes_that_are_no_utf8_are_the_matter_of_their_row(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert [row.problem for row in read_rows(tmp_path / name)] == [None, "is not UTF-8; save it as UTF-8"]


@given(
    st.lists(st.dictionaries(st.text(max_size=3), st.none() | st.floats(allow_nan=False) | st.text()) | st.integers()),
    st.sampled_from([None, 0, 3]),
    st.integers(1, 40),
)
def test_a_json_array_has_the_same_rows_however_much_of_it_is_read_at_once(rows, indent, at_once):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("guardrail.rows._AT_ONCE", at_once)
        path = Path(folder) / "a.json"
        path.write_text(f"\n {json.dumps(rows, indent=indent)}\n ")
        found = list(read_rows(path))
    assert [row.where for row in found] == [f"row {number}" for number in range(1, len(rows) + 1)]
    assert [row.values for row in found] == [row if isinstance(row, dict) else {} for row in rows]
    assert [row.problem is None for row in found] == [isinstance(row, dict) for row in rows]


def test_of_a_json_array_little_is_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("guardrail.rows._AT_ONCE", 10_000)
    (tmp_path / "a.json").write_text(json.dumps([{"text": f"text {number}" * 10} for number in range(20_000)]))
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_rows(tmp_path / "a.json")) == 20_000
        assert tracemalloc.get_traced_memory()[1] < (tmp_path / "a.json").stat().st_size / 5
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ('{"text": "b"}', 'row 2: a "," or "]" is missing'),
        ("", 'row 2: a "," or "]" is missing'),
        (",", "row 2: Expecting value .line 2"),
        (",]", "row 2: Expecting value .line 2"),
        (', {"text": "b', "row 2: Unterminated string starting at .line 2"),
        (', {"text": oops}, {"text": "c"}]', "row 2: Expecting value .line 2"),
        ("," + '{"a":' * 100_000, "row 2: nested too deeply"),
        ("] [", "something follows the array of 1 rows"),
    ],
)
def test_where_a_json_array_breaks_is_told_after_the_rows_before(tmp_path, monkeypatch, rest, message):
    monkeypatch.setattr("guardrail.rows._AT_ONCE", 16)
    (tmp_path / "a.json").write_text('[\n{"text": "a"}' + rest)
    rows = read_rows(tmp_path / "a.json")
    assert next(rows).values == {"text": "a"}
    with pytest.raises(ValueError, match=f"a.json: {message}"):
        list(rows)


def test_what_is_broken_early_in_a_json_array_is_not_read_to_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr("guardrail.rows._AT_ONCE", 100)
    monkeypatch.setattr("guardrail.rows._MOST_AT_ONCE", 1_000)
    (tmp_path / "a.json").write_text('[{"text": "a"}, oops' + ', {"text": "b"}' * 100_000 + "]")
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="row 2: Expecting value"):
            list(read_rows(tmp_path / "a.json"))
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("content", [b"", b" \n\t\r\n" * 2_000, b"\xef\xbb\xbf"])
def test_a_file_of_spaces_is_empty(tmp_path, content):
    for name in ("a.csv", "a.jsonl", "a.json"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="is empty"):
            list(read_rows(tmp_path / name))


def test_a_pipe_is_read_and_so_is_a_folder_of_parquet_files(tmp_path):
    reading, writing = os.pipe()
    os.write(writing, b'{"text": "a"}\n{"text": "b"}\n')
    os.close(writing)
    try:
        assert [row.values["text"] for row in read_rows(Path(f"/dev/fd/{reading}"), lines=True)] == ["a", "b"]
    finally:
        os.close(reading)
    (tmp_path / "many.parquet").mkdir()
    for number, text in enumerate("ab"):
        pq.write_table(pa.table({"text": [text]}), tmp_path / "many.parquet" / f"{number}.parquet")
    rows = [(row.where, row.values["text"]) for row in read_rows(tmp_path / "many.parquet")]
    assert rows == [("row 1", "a"), ("row 2", "b")]


def test_half_a_surrogate_that_json_escapes_is_no_matter_of_encoding(tmp_path):
    (tmp_path / "a.json").write_text('[{"text": "\\udc80"}]')
    assert [row.problem for row in read_rows(tmp_path / "a.json")] == [None]

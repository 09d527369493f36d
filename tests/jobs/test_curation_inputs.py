"""What is made of inputs, that it is made a row at a time, and which rows of a set are drawn."""

import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.curation.intake import SET_ASIDE
from guardrail.records import make_record, read_records, write_records, write_table
from guardrail.seeds import LabelledRow
from jobs import curation_inputs
from jobs.curation_inputs import CurationInput, evenly_drawn, tell_of_set_aside


def made(name, path):
    return CurationInput.of(str(name), path, None, None, 0)


def test_rows_are_read_and_written_some_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(curation_inputs, "_RECORDS_AT_ONCE", 2)
    (tmp_path / "mine.csv").write_text("text,unsafe\na,no\nb,perhaps\nc,no\nd,yes\n,no\ne,no\nf,no\ng,no\n")
    given = made(tmp_path / "mine.csv", tmp_path / "made.parquet")
    assert [record["text"] for record in read_records(given.path)] == list("acdefg")
    assert pq.ParquetFile(given.path).num_row_groups == 3
    assert (list(given.numbers), given.problems["row"].to_pylist()) == ([1, 3, 4, 6, 7, 8], [2, 5])


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_large_file_is_never_in_memory(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"large{suffix}"
    line = '{{"text": "{0}", "unsafe": false}}\n' if suffix == ".jsonl" else "{0},no\n"
    with path.open("w") as file:
        file.write("" if suffix == ".jsonl" else "text,unsafe\n")
        file.writelines(line.format(f"text {number} " + "of some length " * 30) for number in range(10_000))
    monkeypatch.setattr(curation_inputs, "_CHARACTERS_AT_ONCE", 200_000)
    tracemalloc.start()
    try:
        given = made(path, tmp_path / "made.parquet")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(given.numbers) == 10_000
    assert peak < path.stat().st_size / 2


def test_what_breaks_off_leaves_no_file(tmp_path):
    (tmp_path / "mine.csv").write_text('text,unsafe\na,no\n"b,no\n')
    with pytest.raises(ValueError, match="not readable as CSV from line 3"):
        made(tmp_path / "mine.csv", tmp_path / "made.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.csv"]


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_file_without_a_single_good_row_is_refused_with_what_is_wrong_with_the_first(tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    path.write_text('{"text": "Bake bread", "label": false}\n{"text": "Steal bread", "label": true}\n')
    with pytest.raises(ValueError, match=r"mine\.json.*none of 2 rows.*row 1: unknown column 'label'"):
        made(path, tmp_path / "made.parquet")
    assert list(tmp_path.iterdir()) == [path]


def test_the_users_own_record_file_is_left_alone(tmp_path):
    path = tmp_path / "mine.parquet"
    write_records([make_record("Bake bread", unsafe=False, source="mine")], path)
    write_table(SET_ASIDE.empty_table(), tmp_path / "set_aside.parquet")
    given = made(path, tmp_path / "made.parquet")
    tell_of_set_aside([given], tmp_path / "set_aside.parquet")
    given.remove()
    assert given.path == path and path.exists()


def test_rows_that_were_set_aside_are_told_by_the_files_and_numbers_that_the_user_knows(tmp_path):
    (tmp_path / "a.csv").write_text("text,unsafe\na,no\nb,perhaps\nc,no\n")
    (tmp_path / "b.jsonl").write_text('{"text": "d"}\n{"text": "e", "unsafe": true}\n')
    write_records([make_record("Bake bread", unsafe=False, source="mine")], tmp_path / "own.parquet")
    names = [tmp_path / name for name in ("a.csv", "own.parquet", "b.jsonl")]
    given = [made(name, tmp_path / f"made-{name.stem}.parquet") for name in names]
    files = [(each.path, row) for each, row in zip((*given, given[0]), (2, 1, 1, 1), strict=True)]
    aside = [{"file": str(file), "row": row, "reason": "too long", "id": "i"} for file, row in files]
    write_table(pa.Table.from_pylist(aside, SET_ASIDE), tmp_path / "set_aside.parquet")
    tell_of_set_aside(given, tmp_path / "set_aside.parquet")
    told = pq.read_table(tmp_path / "set_aside.parquet")
    assert told.schema.equals(SET_ASIDE)
    assert [(row["file"], row["row"], row["id"]) for row in told.to_pylist()] == [
        (str(names[0]), 3, "i"),
        (str(names[1]), 1, "i"),
        (str(names[2]), 2, "i"),
        (str(names[0]), 1, "i"),
        (str(names[0]), 2, None),
        (str(names[2]), 1, None),
    ]


def rows(kinds):
    return [
        LabelledRow(
            number, "", make_record(f"text {number}", unsafe=bool(kind), source="s", categories=[kind] if kind else [])
        )
        for number, kind in enumerate(kinds, 1)
    ]


@given(st.lists(st.sampled_from(["", "hate", "violence", "fraud"]), max_size=60), st.integers(0, 8), st.randoms())
def test_as_many_as_wanted_are_drawn_evenly_whatever_the_order(kinds, most, random):
    listed = rows(kinds)
    drawn = list(evenly_drawn(listed, most, 0))
    shuffled = random.sample(listed, len(listed))
    assert {row.number for row in evenly_drawn(shuffled, most, 0)} == {row.number for row in drawn}
    for unsafe in (True, False):
        of_label = [row for row in listed if row.record["unsafe"] is unsafe]
        chosen = [row for row in drawn if row.record["unsafe"] is unsafe]
        assert len(chosen) == min(most, len(of_label))
        count = {kind: sum(row.record["categories"] == [kind] for row in chosen) for kind in kinds if kind}
        left = {kind for kind in count if count[kind] < kinds.count(kind)}
        if unsafe and left:
            assert max(count.values()) <= min(count[kind] for kind in left) + 1

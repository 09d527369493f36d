"""What the job adds to curation: the files it takes, how it ends, and that a story needs no inputs."""

import contextlib
import json
from collections import Counter
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from guardrail.curation import CurationReport
from guardrail.curation.intake import SET_ASIDE, intake_entry
from guardrail.records import make_record, read_records, write_records, write_table
from guardrail.seeds import embedded_seeds, embedded_texts
from jobs import curate

BREAD = make_record("Bake bread", unsafe=False, source="mine")


@pytest.fixture
def curated(monkeypatch):
    """Curation as if it had set `aside` rows aside and left `unchecked` labels alone; returns what it was given."""
    given = SimpleNamespace(aside=[], unchecked=0, paths=None, records=None)

    def stand_in(paths, out_dir, config, evaluation, num_cpus, tell):
        given.paths, given.records = paths, [read_records(path) for path in paths]
        tell({"stage": "near", "in": 1200, "kept": 1000}, True)
        write_table(pa.Table.from_pylist(given.aside, SET_ASIDE), out_dir / "set_aside.parquet")
        intake = intake_entry(out_dir / "set_aside.parquet", sum(map(len, given.records)) - len(given.aside))
        return CurationReport(kept=0, dropped={}, funnel=[intake], unchecked=given.unchecked)

    monkeypatch.setattr(curate, "curate", stand_in)
    monkeypatch.setattr(curate, "connect", lambda address: contextlib.nullcontext())
    monkeypatch.setattr(curate, "plan_for_cluster", lambda **_: SimpleNamespace(data_task_cpus=0.5))
    return given


def ended(arguments):
    try:
        curate.main(arguments)
    except SystemExit as end:
        return end.code
    return 0


def test_files_of_labelled_rows_are_inputs_too(tmp_path, curated):
    records, rows = tmp_path / "mine.parquet", tmp_path / "mine.csv"
    write_records([BREAD], records)
    rows.write_text("text,unsafe\nHow do I bake bread?,no\n")
    assert ended(["--input", str(records), str(rows), "--output", str(tmp_path / "out")]) == 0
    assert curated.paths[0] == records
    assert [record["text"] for record in curated.records[1]] == ["How do I bake bread?"]
    assert [path.exists() for path in curated.paths] == [True, False]  # of the second a copy was made
    assert (tmp_path / "out" / "kept_out.json").read_text() == "{}\n"


def test_the_shipped_seeds_and_a_part_of_a_public_set_are_inputs_too(tmp_path, curated):
    rows = [("0", text) for text in "ab"] + [("1", text) for text in "cdefghij"] + [("2", text) for text in "klm"]
    lines = [f"{number},,,,,{label},how {text}\n" for number, (label, text) in enumerate(rows)]
    (tmp_path / "davidson.csv").write_text(",count,hate,offensive,neither,class,tweet\n" + "".join(lines))
    arguments = ["--data-dir", str(tmp_path), "--output", str(tmp_path / "out"), "--at-most", '{"davidson": 5}']
    assert ended(["--input", "embedded", "embedded-texts", "davidson", *arguments]) == 0
    seeds, texts, drawn = curated.records
    assert (len(seeds), len(texts)) == (len(embedded_seeds()), len(embedded_texts()))
    kinds = Counter((record["unsafe"], *record["categories"]) for record in drawn)
    assert kinds == {(True, "hate"): 2, (True, "harassment"): 3, (False,): 3}


def test_broken_rows_of_a_public_set_are_set_aside_unless_they_are_many(tmp_path, curated, capsys):
    def attempt(broken):
        labels = ["7" if number in broken else "2" for number in range(1, 41)]
        lines = [f"{number},,,,,{label},how {number}\n" for number, label in enumerate(labels, 1)]
        (tmp_path / "davidson.csv").write_text(",count,hate,offensive,neither,class,tweet\n" + "".join(lines))
        return ended(["--input", "davidson", "--data-dir", str(tmp_path), "--output", str(tmp_path / "out")])

    assert attempt({3, 17}) == 3
    assert len(curated.records[0]) == 38
    aside = pq.read_table(tmp_path / "out" / "set_aside.parquet").to_pylist()
    assert [(row["file"], row["row"]) for row in aside] == [("davidson", 3), ("davidson", 17)]
    assert "2 rows set aside" in (said := capsys.readouterr().err)
    assert "near: 1,000 of 1,200 kept, as it was before" in said
    assert attempt({3, 17, 20}) == 1
    assert "row 3" in (said := capsys.readouterr().err) and "and 2 more of 40 rows" in said


def test_what_is_neither_file_nor_set_is_refused_with_the_nearest_name(tmp_path, curated, capsys):
    assert ended(["--input", "embeded-texts", "--output", str(tmp_path / "out")]) == 1
    assert "did you mean 'embedded-texts'?" in capsys.readouterr().err and curated.paths is None


def test_a_part_of_what_is_no_input_is_refused(tmp_path, capsys):
    assert ended(["--input", "embedded", "--at-most", '{"alpaca": 5}', "--output", str(tmp_path / "out")]) == 1
    assert "alpaca, which --input does not name" in capsys.readouterr().err


def test_rows_that_were_set_aside_are_told_by_the_exit_status(tmp_path, curated, capsys):
    curated.aside = [{"file": "a", "row": row, "reason": "empty text", "id": None} for row in (1, 5)]
    write_records([BREAD], tmp_path / "a.parquet")
    assert ended(["--input", str(tmp_path / "a.parquet"), "--output", str(tmp_path / "out")]) == 3
    assert "2 rows set aside: see" in capsys.readouterr().err


def test_records_whose_labels_nothing_could_be_compared_with_are_told(tmp_path, curated, capsys):
    write_records([BREAD], tmp_path / "a.parquet")
    said = []
    for curated.unchecked in (0, 7):
        assert ended(["--input", str(tmp_path / "a.parquet"), "--output", str(tmp_path / "out")]) == 0
        said.append(capsys.readouterr().err)
    assert "labels were not checked" not in said[0]
    assert "7 records grew from seeds that are not among the inputs; their labels were not checked" in said[1]


def test_bad_rows_of_a_file_of_labelled_rows_are_set_aside_by_their_number(tmp_path, curated, capsys):
    rows, output = tmp_path / "mine.csv", tmp_path / "out"
    lines = [b"a,no", b"b,perhaps", b"\xff\xfe,yes", b"c,no", b"a,no", b",no"]
    rows.write_bytes(b"text,unsafe\n" + b"\n".join(lines))
    made = output.with_name("out.2-mine.parquet")
    other = tmp_path / "other.parquet"
    write_records([BREAD], other)
    curated.aside = [
        {"file": str(file), "row": 2, "reason": "too long", "id": "id"} for file in (other, made)
    ]  # as intake would
    assert ended(["--input", str(other), str(rows), "--output", str(output)]) == 3
    assert [record["text"] for record in curated.records[1]] == ["a", "c", "a"]
    aside = [tuple(row.values()) for row in pq.read_table(output / "set_aside.parquet").to_pylist()]
    assert aside[:2] == [(str(other), 2, "too long", "id"), (str(rows), 4, "too long", "id")]
    assert [(row, reason.split(";")[0]) for _, row, reason, _ in aside[2:]] == [
        (2, "column 'unsafe': 'perhaps' is no truth value"),
        (3, "is not UTF-8"),
        (6, "column 'text': is empty"),
    ]
    assert {file for file, *_ in aside[2:]} == {str(rows)}
    assert "5 rows set aside" in (said := capsys.readouterr()).err
    (intake,) = json.loads((output / "funnel.json").read_text())
    assert (intake["in"], intake["kept"], sum(intake["reasons"].values())) == (7, 2, 5)
    assert intake["reasons"]["too long"] == 2 and "too long 2" in said.out


def test_a_file_of_labelled_rows_without_a_label_is_refused(tmp_path, curated, capsys):
    (tmp_path / "mine.csv").write_text("text\nGood morning\n")
    assert ended(["--input", str(tmp_path / "mine.csv"), "--output", str(tmp_path / "out")]) == 1
    assert "'unsafe' is missing" in capsys.readouterr().err and curated.paths is None


def test_a_file_without_records_is_refused(tmp_path, curated, capsys):
    some, none = tmp_path / "some.parquet", tmp_path / "none.parquet"
    write_records([BREAD], some)
    write_records([], none)
    assert ended(["--input", str(some), str(none), "--output", str(tmp_path / "out")]) == 1
    assert "none.parquet has no records" in capsys.readouterr().err
    assert curated.paths is None


def test_evaluation_sets_that_cannot_be_loaded_are_told(tmp_path, curated, capsys, monkeypatch):
    monkeypatch.setattr(curate, "load_available_evaluations", lambda names, data_dir: ({}, {"xstest": "it is gated"}))
    assert ended(["--input", "embedded", "--evaluation", "all", "--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "not kept out:" in said and "xstest: it is gated" in said and "no --evaluation" not in said
    assert curated.paths is not None


def test_without_inputs_there_is_nothing_to_curate(tmp_path, capsys):
    assert ended(["--output", str(tmp_path)]) == 1
    assert "--input" in capsys.readouterr().err


def test_a_story_needs_no_inputs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(curate, "story", lambda record_id, folder: [f"{record_id} in {folder.name}"])
    assert ended(["--explain", "abc", "--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == "abc in out\n"
    monkeypatch.undo()
    assert ended(["--explain", "abc", "--output", str(tmp_path / "out")]) == 1
    assert "is not what curation wrote" in capsys.readouterr().err

import pyarrow.parquet as pq
import pytest

from guardrail.curation.folders import Folder, Part, merge, orphans, remove_partials, write_sorted, write_verdicts
from guardrail.curation.stage import Drop
from guardrail.records import SCHEMA
from tests.guardrail.surveys import child, numbered, seed


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


def test_a_folder_whose_removal_was_cut_short_does_not_count(tmp_path, monkeypatch):
    folder = Folder(tmp_path / "00-input")
    folder.start()
    (folder.path / "0.parquet").touch()
    folder.finish("k")
    monkeypatch.setattr("guardrail.curation.folders.shutil.rmtree", lambda *_, **__: None)  # killed before it
    folder.remove()
    assert (folder.path / "0.parquet").exists() and folder.manifest("k") is None


def test_what_killed_runs_left_of_a_file_is_removed_and_nothing_else(tmp_path):
    others = ("kept.parquet", ".kept.parquet.old", ".mine.parquet.7", "kept.parquet.12")
    for name in (*others, ".kept.parquet.7", ".kept.parquet.4194304", ".funnel.json.12"):
        (tmp_path / name).touch()
    remove_partials(tmp_path, ["kept.parquet", "funnel.json"])
    assert {path.name for path in tmp_path.iterdir()} == {*others}
    remove_partials(tmp_path / "absent", ["kept.parquet"])


def test_what_grew_from_seeds_that_are_not_among_the_inputs_is_counted_where_it_is_kept(tmp_path):
    here, dropped, absent = seed("Bake bread"), seed("Bake rolls"), seed("Bake cake")
    records = [here, dropped, *(child(each, f"{each['text']}, how?") for each in (here, dropped, absent, absent))]
    part = written(tmp_path, records)
    assert orphans([part, part]) == 4
    (tmp_path / "a").mkdir()
    verdicts = [None, *[Drop("r", "e")] * 4, None]
    write_verdicts(lambda batch: verdicts, tmp_path / "a", part)
    assert orphans([Part(part.records, part.facts, tmp_path / "a" / part.records.name)]) == 1
    assert orphans([]) == 0


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


@pytest.mark.parametrize(("name", "most"), [("ROWS_IN_MEMORY", 3), ("_BYTES_IN_MEMORY", 1000)])
def test_kept_records_are_merged_by_id_a_few_at_a_time(tmp_path, monkeypatch, name, most):
    monkeypatch.setattr(f"guardrail.curation.folders.{name}", most)
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
    assert pq.read_metadata(tmp_path / "kept.parquet").num_row_groups > 2


def test_nothing_is_merged_to_an_empty_file(tmp_path):
    merge([], tmp_path / "kept.parquet")
    assert pq.read_table(tmp_path / "kept.parquet").schema.equals(SCHEMA)

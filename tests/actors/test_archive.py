import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from actors.archive import Archive, Find, category_of
from guardrail.records import make_record


def find(name, vector, category="hate", style="polite"):
    embedding = np.array(vector, dtype=np.float32)
    return Find(name, category, style, f"text {name}", embedding / np.linalg.norm(embedding))


def names(archive):
    return {each.id for cell in archive.cells.values() for each in cell}


def test_a_full_cell_forgets_what_is_closest_to_another():
    archive = Archive(per_cell=2)
    archive.add([find("a", [1, 0, 0]), find("b", [0, 1, 0]), find("c", [0.9, 0.1, 0])])
    assert names(archive) == {"a", "b"}
    archive.add([find("d", [0, 0, 1], style="casual")])  # another cell
    assert len(archive) == 3 and archive.embeddings().shape == (3, 3)


def test_a_find_that_is_known_is_not_added_again():
    archive = Archive(per_cell=3)
    archive.add([find("a", [1, 0]), find("a", [1, 0])])
    archive.add([find("a", [1, 0])])
    assert len(archive) == 1


def test_coverage_is_the_share_of_filled_cells():
    archive = Archive(per_cell=3)
    assert archive.coverage(["hate", "fraud"], ["polite", "casual"]) == 0
    archive.add([find("a", [1, 0]), find("b", [0, 1], category="fraud", style="casual")])
    assert archive.coverage(["hate", "fraud"], ["polite", "casual"]) == 0.5


def test_a_saved_archive_is_the_same_again(tmp_path):
    archive = Archive(per_cell=2)
    archive.save(tmp_path / "archive.parquet")
    assert Archive.load(tmp_path / "archive.parquet", per_cell=2).embeddings().shape == (0, 0)
    archive.add([find("a", [1, 0]), find("b", [0, 1])])
    archive.save(tmp_path / "archive.parquet")
    again = Archive.load(tmp_path / "archive.parquet", per_cell=2)
    assert names(again) == {"a", "b"} and np.array_equal(again.embeddings(), archive.embeddings())


@given(st.lists(st.tuples(st.integers(0, 50), st.sampled_from("xy"), st.integers(0, 1000)), max_size=40))
def test_no_cell_is_ever_over_its_bound_and_what_is_forgotten_was_the_closest(rows):
    archive = Archive(per_cell=3)
    for index, style, seed in rows:
        archive.add([find(f"{style}{index}", np.random.default_rng(seed).normal(size=4), style=style)])
        assert all(len(cell) <= 3 for cell in archive.cells.values())
    assert len(archive) == sum(min(3, len({i for i, s, _ in rows if s == style})) for style in "xy")


def test_a_goals_cell_is_its_most_specific_category():
    unsafe = make_record("x", unsafe=True, source="s", categories=["hate/threatening"])
    assert category_of(unsafe) == "hate/threatening"
    assert category_of(make_record("y", unsafe=True, source="s", categories=None)) == "unsafe"
    assert category_of(make_record("z", unsafe=False, source="s", categories=[])) == "benign"

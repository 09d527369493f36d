import pyarrow as pa

from guardrail.curation.stage import ByRow, Drop, seed_first


def test_seeds_come_first_then_the_smallest_id():
    rows = [{"id": i, "method": method} for i, method in (("b", "rl"), ("d", "seed"), ("a", "rl"), ("c", "seed"))]
    assert [rows[i]["id"] for i in seed_first(pa.Table.from_pylist(rows))] == ["c", "d", "a", "b"]


def test_a_judge_of_rows_drops_these_rows():
    drops = pa.table({"row": [7, 2], "reason": ["r", "s"], "evidence": ["seven", "two"]})
    assert ByRow(drops)(pa.table({"row": [2, 3, 7]})) == [Drop("s", "two"), None, Drop("r", "seven")]

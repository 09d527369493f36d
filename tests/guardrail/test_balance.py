import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from guardrail.curation.balance import surplus
from guardrail.records import SCHEMA

CELL = pa.schema(
    [("row", pa.int64()), *(SCHEMA.field(name) for name in ("id", "unsafe", "categories", "method"))],
)


def cell(count, prefix, method="rl", unsafe=True, categories=("hate",)):
    return [
        {"id": f"{prefix}{i:03d}", "unsafe": unsafe, "categories": categories and list(categories), "method": method}
        for i in range(count)
    ]


def over_limit(rows, ratio):
    """Id to evidence of what is dropped."""
    drops = surplus(pa.Table.from_pylist([{**row, "row": i} for i, row in enumerate(rows)], CELL), ratio).to_pylist()
    return {rows[drop["row"]]["id"]: drop["evidence"] for drop in drops}


def test_a_full_cell_is_cut_to_its_limit_by_the_largest_ids():
    rows = cell(4, "c", method="augment") + cell(30, "a") + cell(4, "b", categories=["fraud"])
    assert over_limit(rows, 2.0) == {f"a{i:03d}": "30 in unsafe/hate/rl, limit 8" for i in range(8, 30)}


def test_transforms_are_one_method():
    rows = cell(8, "a") + [row for i in range(8) for row in cell(1, f"t{i}-", method=f"transform:{i}")]
    assert over_limit(rows, 1.0) == {}


def test_the_last_category_is_the_cells():
    rows = cell(6, "a", categories=["hate", "fraud"]) + cell(2, "b", categories=None) + cell(2, "c", categories=[])
    assert set(over_limit(rows, 1.0).values()) == {"6 in unsafe/fraud/rl, limit 5"}


def test_seeds_neither_count_nor_go():
    rows = cell(100, "s", method="seed") + cell(3, "a") + cell(3, "b", unsafe=False, categories=())
    assert over_limit(rows, 1.0) == {}
    assert over_limit(rows[:100], 1.0) == {}


@given(
    sizes=st.lists(st.integers(0, 12), max_size=6),
    ratio=st.floats(1, 5),
    order=st.randoms(use_true_random=False),
)
def test_surplus_does_not_hang_on_order(sizes, ratio, order):
    rows = [row for i, size in enumerate(sizes) for row in cell(size, f"{i}-", method=f"method-{i}")]
    over = over_limit(rows, ratio)
    assert over == over_limit(order.sample(rows, len(rows)), ratio)
    assert all(
        sum(row["id"] not in over for row in rows if row["id"].startswith(f"{i}-")) for i, n in enumerate(sizes) if n
    )

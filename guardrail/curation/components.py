"""What pairs of records connect: of each component the preferred record stays, and the others are duplicates.

Pairs are those that some stage found, enough of them to connect all that is alike.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Indices = NDArray[np.int64]


def components(pairs: NDArray[np.integer], count: int) -> Indices:
    """Return the number of the component of each of `count` nodes that these pairs [n, 2] connect."""
    graph = coo_array((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1]).astype(np.int64)


def component_drops(records: pa.Table, pairs: NDArray[np.int32], whole: int, reason: str) -> pa.Table:
    """Return row, reason and evidence of what is not the first of its component.

    Evidence is the id of the record that stays, the similarity to the record that this one is most like and, where that
    is another one than stays, its id.

    Args:
        records: row and id, in the order of preference.
        pairs: numbers of two records that are alike, and how alike they are [pairs, 3].
        whole: how alike two records are that are the same.
        reason: of all.
    """
    component = components(pairs, len(records))
    first = np.unique(component, return_index=True)[1]
    both = np.concatenate([pairs, pairs[:, [1, 0, 2]]])
    both = both[np.lexsort((both[:, 1], -both[:, 2], both[:, 0]))]  # the most alike of each record first
    dropped, place = np.unique(both[:, 0], return_index=True)
    stays = first[component[dropped]]
    dropped, place, stays = (column[dropped != stays] for column in (dropped, place, stays))
    ids = [records["id"].take(pa.array(column)).to_pylist() for column in (stays, both[place, 1])]
    similarities = np.minimum(both[place, 2] / whole, 1).tolist()
    return pa.table(
        {
            "row": records["row"].take(pa.array(dropped)),
            "reason": pa.array([reason] * len(dropped), pa.string()),
            "evidence": pa.array([_evidence(*each) for each in zip(*ids, similarities, strict=True)], pa.string()),
        }
    )


def _evidence(stays: str, twin: str, similarity: float) -> str:
    return f"{stays}: {similarity:.2f}" if twin == stays else f"{stays} through {twin}: {similarity:.2f}"

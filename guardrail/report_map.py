"""A map of a run's texts: samples of seeds, synthetic records and attacks, placed by meaning; no texts."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.decomposition import PCA

from guardrail.deobfuscation import plain
from guardrail.text import joined

POINTS_PER_KIND = 300


def embedding_map(
    tables: Mapping[str, pa.Table],
    encode: Callable[[Sequence[str]], np.ndarray],
    *,
    seed: int,
    limit: int = POINTS_PER_KIND,
) -> dict[str, Any]:
    """Return the first two principal components of the texts' embeddings.

    Args:
        tables: of the record schema, by kind; attacks have the columns `style` and `success`, too.
        encode: gives L2-normalised embeddings, [n, d].
        seed: of the samples.
        limit: most points of a kind, in equal parts of each method and round as far as these go.

    Returns:
        `explained`: the components' shares of the variance; `counts`: by kind, how many are `shown` `of` how many;
        `points`: `x`, `y`, kind, method, unsafe, categories, round, and of attacks style and success.
    """
    chosen = {kind: _sampled(table, limit, seed) for kind, table in tables.items()}
    rows = [{"kind": kind, **row} for kind, table in chosen.items() for row in table.to_pylist()]
    # An attack in disguise lies where what it says does.
    embeddings = encode([plain(joined(row["text"], row["response"])) for row in rows])
    components = PCA(2, svd_solver="full").fit(embeddings)
    told = ("kind", "method", "unsafe", "categories", "round", "style", "success")
    return {
        "explained": [round(float(share), 4) for share in components.explained_variance_ratio_],
        "counts": {kind: {"shown": chosen[kind].num_rows, "of": tables[kind].num_rows} for kind in tables},
        "points": [
            {"x": round(float(x), 4), "y": round(float(y), 4), **{key: row[key] for key in told if key in row}}
            for (x, y), row in zip(components.transform(embeddings), rows, strict=True)
        ],
    }


def _sampled(table: pa.Table, limit: int, seed: int) -> pa.Table:
    """Return at most `limit` rows, drawn in turn from each method and round."""
    groups = list(zip(table["method"].to_pylist(), table["round"].to_pylist(), strict=True))
    drawn: Counter[tuple[str, int]] = Counter()
    turns = []
    for place in np.random.default_rng(seed).permutation(len(groups)):
        turns.append((drawn[groups[place]], int(place)))
        drawn[groups[place]] += 1
    return table.take(pa.array(sorted(place for _, place in sorted(turns)[:limit]), pa.int64()))

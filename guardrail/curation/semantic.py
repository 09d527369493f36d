"""The stage that finds texts that say the same in other words, or in another order.

Records are compared with those that lie about the same centroids (Sivic and Zisserman's inverted file, 2003): each has
its place at the three nearest ones. On 72,000 public texts that finds 99% of the pairs that comparing all with all
finds. What is found must hang on nothing but the records: the vectors are whole numbers so small that float32 holds all
their products' sums exactly, in whatever order a BLAS adds them, and the centroids come from the records with the
smallest ids, which are hashes: as good as drawn by lot.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import minimum_spanning_tree

from guardrail.curation.components import Indices, component_drops
from guardrail.curation.config import CurationConfig
from guardrail.curation.equals import numbered
from guardrail.curation.stage import ByRow, Judge, Survey, are_attacks, are_trusted_seeds, seed_first
from guardrail.curation.written import column_at
from guardrail.embedding import SharedEmbedder, shared_encoder
from guardrail.static_embedding import StaticEncoder
from guardrail.text import joined

Floats = NDArray[np.float32]
Encoder = StaticEncoder | SharedEmbedder

LEVELS = 127  #: length of a vector: dimensions are int8, and a product of two vectors is far below 2^24
_LONGEST = 2000  # characters; the mean of more words than that is much the same for all texts of a kind
_PLACES = 3  # nearest centroids at which a record has its place
_CELL = 256  # records for each centroid
_SAMPLE = 16  # records for each centroid that it is made from
# Records that all centroids are made from, at most, for they are on the driver: those of 1.6 million. With two to eight
# for each centroid as many pairs of 42,000 texts were found as with 16; cells were less equal, which costs up to twice.
_MOST_SAMPLED = 100_000
_ROUNDS = 4  # of k-means, which makes cells more equal in size
_ROUTED = 64  # first components, which say most of a static embedding, are what centroids are in
_MEMBERS = 200_000  # of the cells of one task: 50 MB
_PRODUCTS = 4_000_000  # of vectors, in memory together
_EDGES = 2_000_000  # between members of a cell, in memory together


class SemanticDuplicates:
    """Records of one label whose embeddings' cosine reaches `semantic_duplicate`; a component's preferred one stays.

    Evidence is the id of the record that stays, the cosine to the record that this one is most like and, where that is
    another one than stays, its id. Texts of more than 2,000 characters are not judged, nor seeds of `trusted_sources`,
    which say what they say on purpose, nor attacks, which are like their seeds by design.
    """

    name = "semantic"

    def __init__(self, config: CurationConfig) -> None:
        self.config = config
        self.settings: Mapping[str, Any] = config.model_dump(
            mode="json", include={"semantic_duplicate", "semantic_encoder", "trusted_sources"}
        )

    def prepare(self, survey: Survey) -> Judge:
        """Have all texts embedded and put in cells, have each cell's records compared, and join what is alike."""
        records = survey.kept(["row", "id", "method", "source"])
        order = seed_first(records)
        encoder, centroids = _sampled(records, survey, self.config.semantic_encoder)
        paths = survey.written(functools.partial(_placed, encoder, centroids))
        cells = np.concatenate([_cells(path) for path in paths])[order]
        least = math.ceil(self.config.semantic_duplicate * LEVELS**2)
        found = survey.each(functools.partial(_alike, paths, order, cells, least), _tasks(cells))
        pairs = np.concatenate([np.empty((0, 3), np.int32), *found])
        drops = component_drops(records.take(pa.array(order)), pairs, LEVELS**2, "semantic duplicate")
        spared = are_attacks(records) | are_trusted_seeds(records, self.config.trusted_sources)
        return ByRow(
            drops.filter(pc.is_in(drops["row"], value_set=records["row"].filter(pa.array(~spared)).combine_chunks()))
        )


# --- embeddings and cells ---------------------------------------------------------------------------------------------


def _sampled(records: pa.Table, survey: Survey, name: str) -> tuple[Encoder, Floats]:
    """Return the encoder, a static one with the frequencies of these records, and the centroids [cells, dimensions].

    Both come from the texts with the smallest ids.
    """
    count = math.ceil(len(records) / _CELL)
    smallest = pc.sort_indices(records["id"])[: min(count * _SAMPLE, _MOST_SAMPLED)]
    sample = survey.computed(functools.partial(_texts_of, records["row"].take(smallest)))
    texts = sample.sort_by("id")["text"].to_pylist()
    encoder = shared_encoder(name)
    if isinstance(encoder, SharedEmbedder):
        return encoder, _centroids(whole_vectors(encoder, texts), count)
    encoder = encoder.fitted(encoder.token_counts(texts))
    return encoder, _centroids(whole_vectors(encoder, texts)[:, :_ROUTED], count)


def _texts_of(rows: pa.ChunkedArray, batch: pa.Table) -> pa.Table:
    batch = batch.filter(pc.is_in(batch["row"], value_set=rows.combine_chunks()))
    texts = [text if len(text) <= _LONGEST else "" for text in _texts(batch)]  # of which nothing would be made
    return pa.table({"id": batch["id"], "text": pa.array(texts, pa.string())})


def _texts(batch: pa.Table) -> list[str]:
    return list(map(joined, batch["text"].to_pylist(), batch["response"].to_pylist()))


def whole_vectors(encoder: Encoder, texts: Sequence[str]) -> Floats:
    """Return the embeddings as whole numbers, `LEVELS` long but for rounding [texts, dimensions].

    float32 holds their products exactly. Those of texts that are too long, of which encoders read only the start, are
    all zeros.
    """
    shown = [text if len(text) <= _LONGEST else "" for text in texts]
    vectors = np.rint(encoder.encode(shown) * LEVELS)
    vectors[[not text for text in shown]] = 0  # full encoders make something of nothing
    return vectors


def _centroids(vectors: Floats, count: int) -> Floats:
    """Return at most `count` centroids of vectors, and at least one, in whole numbers [centroids, dimensions]."""
    vectors = vectors[vectors.any(axis=1)]
    centroids = vectors[:count] if len(vectors) else np.zeros((1, vectors.shape[1]), dtype=np.float32)
    for _ in range(_ROUNDS):
        nearest = _nearest(vectors, centroids)[:, 0]
        places = nearest, np.arange(len(vectors))
        sums = csr_array((np.ones(len(vectors)), places), shape=(len(centroids), len(vectors))) @ vectors
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        moved = np.rint(sums / np.maximum(lengths, 1) * LEVELS).astype(np.float32)
        centroids = np.where(lengths > 0, moved, centroids)
    return centroids


def _nearest(vectors: Floats, centroids: Floats) -> Indices:
    """Return the numbers of the `_PLACES` nearest centroids of each vector; of equally near ones the first."""
    places = min(_PLACES, len(centroids))
    found = np.zeros((len(vectors), places), dtype=np.int64)
    step = max(1, _PRODUCTS // len(centroids))
    for start in range(0, len(vectors), step):
        products = vectors[start : start + step, : centroids.shape[1]] @ centroids.T
        for place in range(places):
            nearest = products.argmax(axis=1)
            found[start : start + step, place] = nearest
            products[np.arange(len(nearest)), nearest] = -np.inf
    return found


def _placed(encoder: Encoder, centroids: Floats, batch: pa.Table) -> pa.Table:
    """Return the vector of each record and its cells: two for each centroid, one of each label; -1: not comparable."""
    vectors = whole_vectors(encoder, _texts(batch))
    cells = 2 * _nearest(vectors, centroids) + batch["unsafe"].to_numpy().astype(np.int64)[:, None]
    cells[~vectors.any(axis=1)] = -1
    columns = {f"cell{place}": column for place, column in enumerate(cells.astype(np.int32).T)}
    return pa.table({"vector": _binary(vectors)} | columns)


def _binary(vectors: Floats) -> pa.FixedSizeBinaryArray:
    stored = pa.py_buffer(vectors.astype(np.int8).tobytes())
    return pa.Array.from_buffers(pa.binary(vectors.shape[1]), len(vectors), [None, stored])


def _cells(path: Path) -> NDArray[np.int32]:
    """Return the cells of a file's records [records, places]."""
    file = pq.ParquetFile(path)
    table = file.read([name for name in file.schema_arrow.names if name.startswith("cell")])
    return np.stack([column.to_numpy() for column in table.columns], axis=1)


# --- what is alike ----------------------------------------------------------------------------------------------------


def _tasks(cells: NDArray[np.int32]) -> list[range]:
    """Return ranges of cells that have `_MEMBERS` members each, or are a single cell."""
    sizes = np.bincount(cells[cells >= 0])
    task = (np.cumsum(sizes) - sizes) // _MEMBERS
    starts, last = np.flatnonzero(np.diff(task, prepend=-1)), np.flatnonzero(np.diff(task, append=-1))
    return [range(start, end + 1) for start, end in zip(starts, last, strict=True)]


def _alike(
    paths: Sequence[Path], order: Indices, cells: NDArray[np.int32], least: int, wanted: range
) -> NDArray[np.int32]:
    """Return records that are alike and their vectors' product [pairs, 3], enough pairs to connect all that are.

    Args:
        paths: what `_placed` returned for each file.
        order: the records' places in these files, in the order of preference; pairs are numbers in this order.
        cells: of the records, in this order [records, places].
        least: product of vectors that are alike.
        wanted: cells.
    """
    inside = (cells >= wanted.start) & (cells < wanted.stop)
    members = np.flatnonzero(inside.any(axis=1))
    vectors = _stored(paths, order[members])
    member, place = np.nonzero(inside[members])
    cell = cells[members][member, place]
    by_cell = np.argsort(cell, kind="stable")  # members of a cell stay in the order of preference
    bounds = np.flatnonzero(np.diff(cell[by_cell])) + 1
    pairs = [np.empty((0, 3), dtype=np.int32)]
    for group in np.split(member[by_cell], bounds):
        one, other, product = _forest(vectors[group].astype(np.float32), least)
        pairs.append(np.stack([members[group[one]], members[group[other]], product], axis=1).astype(np.int32))
    return np.concatenate(pairs)


def _stored(paths: Sequence[Path], places: Indices) -> NDArray[np.int8]:
    """Return the vectors at these places, counted through all files."""
    width = pq.read_schema(paths[0]).field("vector").type.byte_width
    found = np.empty((len(places), width), dtype=np.int8)
    for wanted, column in column_at(paths, "vector", places):
        stored = column.combine_chunks().buffers()[1]
        found[wanted] = np.frombuffer(stored, dtype=np.int8).reshape(-1, width)[: len(wanted)]
    return found


def _forest(vectors: Floats, least: int) -> tuple[Indices, Indices, Indices]:
    """Return two rows and their product for each edge of a maximum spanning forest of the rows that are alike."""
    # Equal vectors, of which boilerplate has any number, are joined without being compared.
    number = numbered(pa.chunked_array([_binary(vectors)]))
    distinct = np.unique(number, return_index=True)[1]  # numbers are in the order of their first appearance
    equal = np.flatnonzero(distinct[number] != np.arange(len(vectors)))
    edges = [(distinct[number[equal]], equal, np.square(vectors[equal]).sum(axis=1))]
    rows, step = vectors[distinct], max(1, _PRODUCTS // len(distinct))
    for start in range(0, len(distinct), step):
        products = rows[start : start + step] @ rows[start:].T
        one, other = np.divmod(np.flatnonzero(products >= least), products.shape[1])
        one, other = one[one < other], other[one < other]
        edges.append((distinct[start + one], distinct[start + other], products[one, other]))
        if sum(len(each[0]) for each in edges) > _EDGES:
            edges = [_spanning(edges, len(vectors))]
    one, other, product = _spanning(edges, len(vectors))
    return one, other, product.astype(np.int64)


def _spanning(edges: Sequence[tuple[Indices, Indices, Floats]], count: int) -> tuple[Indices, Indices, Floats]:
    one, other, product = (np.concatenate(columns) for columns in zip(*edges, strict=True))
    above = 2.0 * LEVELS**2  # any product; SciPy finds the least sum of positive weights
    tree = minimum_spanning_tree(csr_array((above - product, (one, other)), shape=(count, count))).tocoo()
    return tree.row.astype(np.int64), tree.col.astype(np.int64), (above - tree.data).astype(np.float32)

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from guardrail import embedding
from guardrail.curation import semantic
from guardrail.curation.config import CurationConfig
from guardrail.curation.semantic import SemanticDuplicates
from tests.guardrail import surveys
from tests.guardrail.surveys import seed

CONFIG = CurationConfig(semantic_encoder="by hand", semantic_duplicate=0.9)


class ByHand:
    """An encoder of texts that begin with an angle in degrees, on one of some circles: "30 of 2: anything"."""

    def encode(self, texts):
        found = np.zeros((len(texts), 8), dtype=np.float32)
        for row, text in zip(found, texts, strict=True):
            if text:
                angle, circle = (int(word.strip(":")) for word in text.split(" ")[::2][:2])
                row[2 * circle : 2 * circle + 2] = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        return found


@pytest.fixture(autouse=True)
def by_hand(monkeypatch):
    monkeypatch.setattr(embedding, "loaded_embedder", lambda name: ByHand())


def verdicts(records, config=CONFIG, **survey):
    return surveys.verdicts(SemanticDuplicates(config), records, **survey)


def test_the_seed_stays_and_evidence_is_its_id_and_the_cosine():
    original = seed("30 of 0: a seed")
    children = [seed(f"{30 + turn} of 0: a child", method="paraphrase") for turn in (0, 10, 20, 60)]
    kept, same, near, *others = verdicts([original, *children])
    assert kept is None
    assert (same.reason, same.evidence) == ("semantic duplicate", f"{original['id']}: 1.00")
    assert near.evidence == f"{original['id']}: 0.99"
    assert [drop is None for drop in others] == [False, True]


def test_seeds_labelled_by_hand_and_attacks_stay():
    config = CONFIG.model_copy(update={"trusted_sources": ("mine",)})
    methods = ("seed", "seed", "rl", "transform:rot13", "paraphrase")
    records = [seed(f"{angle} of 0: {method}", method=method) for angle, method in enumerate(methods)]
    assert [drop is None for drop in verdicts(records, config)] == [True, True, True, True, False]


def test_of_equals_the_smallest_id_stays():
    records = sorted((seed(f"{i} of 1: one") for i in range(5)), key=lambda record: record["id"], reverse=True)
    drops = verdicts(records)
    assert drops[-1] is None
    assert all(drop.evidence.startswith(records[-1]["id"]) for drop in drops[:-1])


def test_other_labels_are_no_duplicates():
    assert verdicts([seed("5 of 0: safe"), seed("5 of 0: unsafe", unsafe=True)]) == [None, None]


def test_a_chain_is_one_and_evidence_names_the_link():
    first, *rest = [seed("0 of 0: a"), *(seed(f"{angle} of 0: b", method="augment") for angle in (20, 44))]
    kept, link, last = verdicts([first, *rest])
    assert kept is None
    assert link.evidence == f"{first['id']}: 0.94"
    assert last.evidence == f"{first['id']} through {rest[0]['id']}: 0.91"


def test_long_texts_and_those_that_mean_nothing_are_kept():
    long = [seed("5 of 0: " + "word " * 400 + end) for end in ("here", "there")]
    assert verdicts(long) == [None, None]


def test_a_response_is_part_of_the_text():
    answered = [seed("5 of 0: a question", response=answer) for answer in ("short", "long " * 400)]
    assert verdicts([seed("5 of 0: another"), *answered]).count(None) == 2


def test_nothing_to_judge():
    assert verdicts([]) == []
    assert verdicts([seed("5 of 0: " + "word " * 400)]) == [None]


@settings(max_examples=40)
@given(
    texts=st.lists(st.tuples(st.integers(0, 359), st.integers(0, 3), st.booleans(), st.booleans()), max_size=40),
    order=st.randoms(use_true_random=False),
    rows_per_file=st.integers(1, 50),
    most_sampled=st.integers(1, 30),
)
def test_neither_order_nor_files_matter(texts, order, rows_per_file, most_sampled):
    with pytest.MonkeyPatch.context() as patched:
        # As if there were many: several cells, tasks, and blocks of products.
        for name, value in (("_CELL", 4), ("_MEMBERS", 10), ("_PRODUCTS", 30), ("_EDGES", 5), ("_SAMPLE", 2)):
            patched.setattr(semantic, name, value)
        patched.setattr(semantic, "_MOST_SAMPLED", most_sampled)
        records = [
            seed(f"{angle} of {circle}: {unsafe}", unsafe=unsafe, method="seed" if own else "augment")
            for angle, circle, unsafe, own in texts
        ]
        records = list({record["id"]: record for record in records}.values())
        shuffled = order.sample(records, len(records))
        one = dict(zip((record["id"] for record in records), verdicts(records), strict=True))
        other = dict(
            zip((record["id"] for record in shuffled), verdicts(shuffled, rows_per_file=rows_per_file), strict=True)
        )
    assert one == other
    assert all(drop is None or one[drop.evidence[:16]] is None for drop in one.values())


def test_of_many_records_no_more_than_some_are_sampled_those_with_the_smallest_ids(monkeypatch):
    sampled = []

    class Recording(ByHand):
        def encode(self, texts):
            sampled.extend(texts)
            return super().encode(texts)

    monkeypatch.setattr(embedding, "loaded_embedder", lambda name: Recording())
    monkeypatch.setattr(semantic, "_CELL", 4)
    monkeypatch.setattr(semantic, "_MOST_SAMPLED", 8)
    records = [seed(f"{angle} of 0: one") for angle in range(40)]
    table = surveys.numbered(records)
    _, centroids = semantic._sampled(table, surveys.InMemory(table), "by hand")
    assert sampled == [record["text"] for record in sorted(records, key=lambda record: record["id"])[:8]]
    assert 1 <= len(centroids) <= 8


# --- cells and forests ------------------------------------------------------------------------------------------------

DIRECTIONS = arrays(np.int8, st.tuples(st.integers(1, 30), st.just(3)), elements=st.integers(-3, 3))


def components(pairs, count):
    return connected_components(coo_array((np.ones(len(pairs[0])), pairs), shape=(count, count)), directed=False)[1]


@given(directions=DIRECTIONS, products=st.integers(1, 100), edges=st.integers(1, 100), least=st.integers(9000, 15900))
def test_a_forest_connects_what_is_alike_by_each_ones_most_alike(directions, products, edges, least):
    directions = directions[directions.any(axis=1)].astype(np.float64)
    assume(len(directions))
    vectors = np.rint(directions / np.linalg.norm(directions, axis=1, keepdims=True) * semantic.LEVELS)
    exact = (vectors @ vectors.T).astype(np.int64)
    np.fill_diagonal(exact, -1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(semantic, "_PRODUCTS", products)
        patched.setattr(semantic, "_EDGES", edges)
        one, other, product = semantic._forest(vectors.astype(np.float32), least)
    assert len(one) < len(vectors)
    assert (product == exact[one, other]).all()
    assert (components((one, other), len(vectors)) == components(np.nonzero(exact >= least), len(vectors))).all()
    most = np.zeros(len(vectors), dtype=np.int64)
    np.maximum.at(most, one, product)
    np.maximum.at(most, other, product)
    alike = exact.max(axis=1) >= least
    assert (most[alike] == exact.max(axis=1)[alike]).all()


def test_products_of_vectors_are_exact():
    random = np.random.default_rng(0)
    vectors = random.normal(size=(50, 768))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    whole = np.rint(vectors * semantic.LEVELS)
    assert (np.abs(whole) @ np.abs(whole).T).max() < 2**24  # so no sum of some of the products is more
    exact = whole.astype(np.int64) @ whole.T.astype(np.int64)
    assert (whole.astype(np.float32) @ whole.astype(np.float32).T == exact).all()


@given(st.lists(st.lists(st.integers(-1, 30), min_size=2, max_size=2), max_size=60), st.integers(1, 20))
def test_each_cell_is_of_one_task(cells, members):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(semantic, "_MEMBERS", members)
        tasks = semantic._tasks(np.array(cells, dtype=np.int32).reshape(-1, 2))
    listed = [cell for task in tasks for cell in task]
    assert listed == list(range(max((max(pair) for pair in cells), default=-1) + 1))


def test_cells_find_almost_all_pairs(monkeypatch):
    monkeypatch.setattr(semantic, "_CELL", 64)
    random = np.random.default_rng(0)
    topics = random.normal(size=(60, 32))
    vectors = topics[random.integers(60, size=3000)] + random.normal(size=(3000, 32))
    vectors[1::3] = vectors[::3] + 0.4 * random.normal(size=(1000, 32))
    vectors = np.rint(vectors / np.linalg.norm(vectors, axis=1, keepdims=True) * semantic.LEVELS).astype(np.float32)
    centroids = semantic._centroids(vectors[:752], 47)
    assert centroids.shape == (47, 32)
    cells = semantic._nearest(vectors, centroids)
    one, other = np.nonzero(np.triu(vectors @ vectors.T >= 0.88 * semantic.LEVELS**2, 1))
    assert len(one) > 900
    shared = (cells[one][:, :, None] == cells[other][:, None, :]).any(axis=(1, 2))
    assert shared.mean() >= 0.98


def test_a_static_encoder_gets_the_frequencies_of_the_records(monkeypatch):
    from tests.guardrail.test_static_embedding import ENCODER

    monkeypatch.setattr(semantic, "shared_encoder", lambda name: ENCODER)
    config = CurationConfig(semantic_encoder="static:any", semantic_duplicate=0.9)
    texts = ["how to bake bread", "bread how to bake", "how to brew tea"]
    assert [drop is None for drop in sorted_verdicts(texts, config)] == [True, False, True]


def sorted_verdicts(texts, config):
    first, *rest = texts
    return verdicts([seed(first), *(seed(text, method="augment") for text in rest)], config)

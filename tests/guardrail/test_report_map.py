"""The map: samples in equal parts, places by embedding, and no texts."""

import json

import numpy as np
import pyarrow as pa

from guardrail.records import make_record, to_table
from guardrail.report_map import embedding_map


def attacks(index, count):
    records = [make_record(f"attack {index} {i}", unsafe=True, source="s", round=index) for i in range(count)]
    table = to_table(records).append_column("style", pa.array(["fiction"] * count))
    return table.append_column("success", pa.array([i % 2 == 0 for i in range(count)]))


def encode(texts):
    vectors = np.random.default_rng(0).normal(0, 0.01, (len(texts), 5))
    vectors[:, 0] += [10.0 if "attack" in text else 0.0 for text in texts]
    return vectors


def test_small_rounds_are_whole_where_large_ones_are_sampled():
    seeds = to_table([make_record(f"seed {i}", unsafe=i % 2 == 0, source="s") for i in range(30)])
    tables = {"seed": seeds, "attack": pa.concat_tables([attacks(1, 100), attacks(2, 5)])}
    found = embedding_map(tables, encode, seed=0, limit=20)
    assert found["counts"] == {"seed": {"shown": 20, "of": 30}, "attack": {"shown": 20, "of": 105}}
    of_round = [point["round"] for point in found["points"] if point["kind"] == "attack"]
    assert (of_round.count(1), of_round.count(2)) == (15, 5)
    assert found == embedding_map(tables, encode, seed=0, limit=20) != embedding_map(tables, encode, seed=1, limit=20)


def test_places_are_those_of_the_embeddings_and_texts_stay_away():
    tables = {"seed": to_table([make_record("seed", unsafe=False, source="s")] * 4), "attack": attacks(1, 4)}
    found = embedding_map(tables, encode, seed=0)
    x = {kind: [p["x"] for p in found["points"] if p["kind"] == kind] for kind in tables}
    assert abs(np.mean(x["seed"]) - np.mean(x["attack"])) > 9 and found["explained"][0] > 0.99
    assert "attack 1 0" not in json.dumps(found) and "style" not in found["points"][0]


def test_a_kind_without_texts_has_no_points():
    tables = {
        "seed": to_table([make_record(f"s {i}", unsafe=True, source="s") for i in range(3)]),
        "attack": attacks(1, 0),
    }
    assert embedding_map(tables, encode, seed=0)["counts"]["attack"] == {"shown": 0, "of": 0}

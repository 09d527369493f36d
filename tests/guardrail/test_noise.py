import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.curation import noise
from guardrail.curation.config import CurationConfig
from guardrail.curation.noise import LabelNoise
from guardrail.records import make_record
from tests.guardrail import surveys
from tests.guardrail.surveys import CONFIG
from tests.guardrail.test_static_embedding import ENCODER

TOPICS = {
    True: "steal break weapon poison forge threaten smuggle hack".split(),
    False: "bake paint garden travel sing read repair teach".split(),
}
COMMON = "how to with my the a in of friend house today quickly please".split()


class States:
    """In the place of an encoder's middle layer; notes what it reads."""

    def __init__(self):
        self.read = set()

    def encode(self, texts):
        self.read.update(texts)
        counts = [[sum(word in TOPICS[about] for word in text.split()) for about in (True, False)] for text in texts]
        return np.array(counts, dtype=np.float32).reshape(len(texts), 2)


def with_tiny_encoders(monkeypatch):
    states = States()
    monkeypatch.setattr(noise, "shared_encoder", lambda name: ENCODER)
    monkeypatch.setattr(noise, "loaded_middle_layer", lambda name: states)
    return states


@pytest.fixture(autouse=True)
def states(monkeypatch):
    return with_tiny_encoders(monkeypatch)


def request(about, number):
    drawn = random.Random(f"{about} {number}")
    return " ".join([*drawn.choices(TOPICS[about], k=3), *drawn.choices(COMMON, k=4), str(number)])


def record(about, number, label=None, **fields):
    fields = {"source": "public", **fields}
    return make_record(request(about, number), unsafe=about if label is None else label, **fields)


def sound(count):
    return [record(number % 2 == 0, number) for number in range(count)]


def verdicts(records, config=CONFIG, **survey):
    drops = surveys.verdicts(LabelNoise(config), records, **survey)
    return {each["id"]: drop for each, drop in zip(records, drops, strict=True)}


def test_wrong_labels_are_found_with_the_probability_of_the_other():
    wrong = [record(number % 2 == 0, number, number % 2 == 1) for number in range(1000, 1020)]
    found = verdicts(sound(300) + wrong)
    dropped = {key for key, drop in found.items() if drop}
    assert len(dropped & {each["id"] for each in wrong}) >= 18
    assert len(dropped) <= 20
    drop = found[wrong[0]["id"]]
    assert drop.reason == "label noise"
    name, probability = drop.evidence.split()
    assert name == "P(unsafe)"
    assert 0.65 <= float(probability) <= 1


def test_what_grew_from_a_wrongly_labelled_seed_goes_with_it():
    wrong = record(True, 1000, False)
    grown = [
        make_record(text, unsafe=label, source="public", parent=wrong, method="rl")
        for text, label in (("whatever it says", False), ("what it means", True))
    ]
    found = verdicts([*sound(300), wrong, *grown])
    assert found[wrong["id"]] and found[grown[0]["id"]].evidence == f"of its seed {wrong['id']}"
    assert found[grown[1]["id"]] is None


def test_trusted_sources_attacks_and_contrasts_are_not_judged():
    doubtful = [record(True, 1000, False), record(True, 1001, False, source="mine:topic")]
    methods = ("rl", "rl:casual_split", "transform:leet", "contrast:lookalike")
    attacks = [record(True, 1002 + number, False, method=method) for number, method in enumerate(methods)]
    records = sound(300) + doubtful + attacks
    dropped = [verdicts(records, CurationConfig(trusted_sources=names)) for names in ((), ("other", "mine:"))]
    judged = [[found[each["id"]] is not None for each in doubtful + attacks] for found in dropped]
    assert judged == [[True, True, *[False] * 4], [True, *[False] * 5]]


def test_what_grew_from_one_seed_does_not_vouch_for_itself():
    seed = record(True, 1000, False)
    family = [seed, *(record(True, 1000 + i, False, parent=seed, method="paraphrase") for i in range(1, 12))]
    found = verdicts(sound(300) + family)
    assert sum(found[each["id"]] is not None for each in family) >= 10


@pytest.mark.parametrize(
    "records",
    [
        [],
        [*sound(190), record(True, 1000, False)],
        [record(True, number) for number in range(300)],
        [record(True, 0, False), *(record(True, number) for number in range(1, 300))],
        [record(True, number, random.Random(number).random() < 0.5) for number in range(400)],
        [record(number % 2 == 0, number, source="rayguard-seeds:fraud") for number in range(300)],
    ],
    ids=["none", "few", "one label", "one label but for one", "not understood", "all trusted"],
)
def test_nothing_is_said_of_too_little(records):
    assert not any(verdicts(records).values())


RECORDS = sound(260) + [record(number % 3 == 0, number, number % 2 == 0) for number in range(1000, 1030)]
RECORDS += [record(True, number, source="rayguard-seeds:fraud") for number in range(2000, 2020)]


@pytest.fixture(scope="module")
def expected():
    with pytest.MonkeyPatch.context() as patched:
        with_tiny_encoders(patched)
        patched.setattr(noise, "_LEARNED", 250)
        return verdicts(RECORDS)


@settings(max_examples=4)
@given(order=st.randoms(use_true_random=False), rows_per_file=st.integers(15, 200))
def test_neither_order_nor_files_matter(expected, order, rows_per_file):
    assert any(expected.values())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(noise, "_LEARNED", 250)
        assert verdicts(order.sample(RECORDS, len(RECORDS)), rows_per_file=rows_per_file) == expected


def test_a_long_text_counts_by_its_start():
    texts = pa.table({"text": ["word " * 10_000, "a"], "response": [None, "b"]})
    assert [len(text) for text in noise._texts(texts)] == [noise._LONGEST, len("a\n\nb")]


def test_what_is_doubtful_is_read_again(states, monkeypatch):
    monkeypatch.setattr(noise, "_LEARNED_AGAIN", 60)
    wrong = [record(number % 2 == 0, number, number % 2 == 1) for number in range(1000, 1020)]
    records = sound(300) + wrong
    found = verdicts(records)
    assert {each["text"] for each in wrong} <= states.read and len(states.read) < 160
    monkeypatch.setattr(States, "encode", lambda self, texts: np.zeros((len(texts), 2)))
    assert verdicts(records) != found


def test_features_are_words_pairs_and_the_embedding():
    features = noise._Words(ENCODER)(["Bake BREAD", "bake bread, bake", "б"])
    assert features.shape == (3, 2**16 + 16)
    lengths = np.sqrt(np.asarray(features.multiply(features).sum(axis=1)).ravel())
    assert lengths.tolist() == pytest.approx([1.25**0.5, 1.25**0.5, 1])
    assert noise._Words(ENCODER)([]).shape == (0, 2**16 + 16)


def test_features_of_the_second_reading_are_words_and_scaled_states():
    texts = [request(number % 2 == 0, number) for number in range(50)]
    features, found = noise._States.scaled_to(texts, "tiny")
    assert (found != features(texts)).nnz == 0
    states = found[:, 2**16 :].toarray() * 2**0.5
    assert states.mean(axis=0) == pytest.approx(0, abs=1e-5) and states.std(axis=0) == pytest.approx(1, abs=1e-3)


def test_where_nothing_is_doubtful_nothing_is_read_again(states, monkeypatch):
    monkeypatch.setattr(noise, "_DOUBTFUL", 1.0)
    assert any(verdicts(RECORDS).values()) and not states.read


def test_where_labels_say_nothing_of_texts_they_are_not_read_again(states):
    lots = random.Random(0)
    found = verdicts([record(number % 2 == 0, number, lots.random() < 0.5) for number in range(400)])
    assert not any(found.values()) and not states.read

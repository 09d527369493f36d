import functools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.curation import CurationConfig
from guardrail.curation.duplicates import ExactDuplicates, NearDuplicates, repeated
from guardrail.curation.facts import NearIndex, signatures
from guardrail.curation.stage import Drop
from guardrail.text import digest
from guardrail.transforms import TRANSFORMS
from tests.guardrail.surveys import BREAD, CONFIG, child, jaccard, seed, verdicts

# --- exact --------------------------------------------------------------------------------------------------------


def test_a_seed_wins_over_generated_equals_whatever_their_label():
    parent = seed("Bake bread")
    copies = [child(parent, "bake  BREAD", unsafe=True, categories=None), parent, child(parent, "Bake Bread")]
    reasons = [drop and drop.reason for drop in verdicts(ExactDuplicates(), copies)]
    assert reasons == ["labelled otherwise by a seed", None, "duplicate"]


def test_contradictory_labels_without_a_seed_drop_all():
    parent = seed("Something else")
    copies = [child(parent, "Bake bread", unsafe=label, categories=None) for label in (True, False, True)]
    drops = verdicts(ExactDuplicates(), [*copies, parent])
    assert drops == [Drop("contradictory labels", copies[0]["id"])] * 3 + [None]


def test_contradictory_seeds_drop_all():
    assert all(verdicts(ExactDuplicates(), [seed("Bake bread", True), seed("Bake bread", False)]))


def test_of_equal_records_one_whose_categories_are_known_stays():
    for number in range(8):  # digests alone would have half of them stay
        known, unknown = (seed(f"Bake bread {number}", True, categories=keys) for keys in (["fraud"], None))
        assert [bool(drop) for drop in verdicts(ExactDuplicates(), [unknown, known])] == [True, False]


EQUAL = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("unsafe", pa.bool_()),
        ("method", pa.string()),
        ("unlabelled", pa.bool_()),
        ("digest", pa.string()),
    ]
)
equal_rows = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.sampled_from("abc"),
            "unsafe": st.booleans(),
            "method": st.sampled_from(["seed", "rl"]),
            "unlabelled": st.booleans(),
            "digest": st.sampled_from("xyz"),
        }
    ),
    max_size=12,
)


@given(rows=equal_rows, order=st.randoms(use_true_random=False))
def test_which_equal_stays_does_not_hang_on_order(rows, order):
    def kept(listed):
        numbered_rows = [{**row, "row": number} for number, row in enumerate(listed)]
        drops = repeated(pa.Table.from_pylist(numbered_rows, EQUAL)).to_pylist()
        dropped = {drop["row"] for drop in drops}
        stay = [row for row in numbered_rows if row["row"] not in dropped]
        assert all(drop["evidence"] == listed[drop["row"]]["id"] for drop in drops)
        return sorted((row["id"], row["unsafe"], row["method"], row["unlabelled"], row["digest"]) for row in stay)

    shuffled = order.sample(rows, len(rows))
    assert kept(rows) == kept(shuffled)
    assert len({row[0] for row in kept(rows)}) == len(kept(rows))


def test_of_equal_records_the_same_one_stays_in_whatever_file():
    records = [child(seed("Something else"), "Bake bread", attacker_version=name) for name in "cab"]
    stays = {
        records[verdicts(ExactDuplicates(), records, rows_per_file=size).index(None)]["attacker_version"]
        for size in (1, 2, 3)
    }
    records.reverse()
    stays |= {records[verdicts(ExactDuplicates(), records).index(None)]["attacker_version"]}
    assert len(stays) == 1


# --- near ---------------------------------------------------------------------------------------------------------


def near(stays, of, through=None, config=CONFIG):
    """The verdict on record `of`, which is most like `through`."""
    similarity = jaccard(of["text"], (through or stays)["text"], config)
    joint = f" through {through['id']}" if through else ""
    return Drop("near duplicate", f"{stays['id']}{joint}: {similarity:.2f}")


def test_twins_of_one_label_leave_the_seed():
    original = seed(BREAD)
    twin, other = child(original, BREAD + " please"), child(original, "Name three birds that sing at night")
    turned = child(original, BREAD + " please.", unsafe=True, categories=None)
    drops = verdicts(NearDuplicates(CONFIG), [twin, turned, other, original])
    assert drops == [near(original, twin), None, None, None]
    assert 0.8 < float(drops[0].evidence.partition(": ")[2]) < 1


@pytest.mark.parametrize("disguise", ["homoglyph", "leetspeak", "letter_spacing", "base64", "rot13"])
def test_a_disguised_copy_is_a_near_duplicate(disguise):
    original = seed(BREAD)
    copy = seed(TRANSFORMS[disguise].apply(BREAD, np.random.default_rng(0)))
    # Two seeds: the smaller id stays.
    kept, dropped = sorted([original, copy], key=lambda record: record["id"])
    drops = verdicts(NearDuplicates(CONFIG), [kept, dropped])
    assert drops == [None, Drop("near duplicate", f"{kept['id']}: 1.00")]


@pytest.mark.parametrize("method", ["rl", "transform:leetspeak"])
def test_a_disguised_attack_is_none(method):
    original = seed(BREAD)
    attack = child(original, TRANSFORMS["leetspeak"].apply(BREAD, np.random.default_rng(0)), method)
    assert verdicts(NearDuplicates(CONFIG), [original, attack]) == [None, None]


def test_a_response_counts_as_much_as_the_request():
    one, two = (seed("Write a poem", response=response) for response in (BREAD, "Roses are red, violets are blue"))
    assert verdicts(NearDuplicates(CONFIG), [one, two]) == [None, None]


def test_components_are_joined_through_the_middle():
    config = CurationConfig(near_duplicate=0.78, permutations=256)
    stem = [f"word{i:02d}" for i in range(40)]
    parent = seed("Something else")
    make = [seed, functools.partial(child, parent), functools.partial(child, parent)]
    chain = [of(" ".join(stem[start : start + 30])) for of, start in zip(make, (0, 3, 6), strict=True)]
    ends, neighbours = (jaccard(chain[0]["text"], chain[i]["text"], config) for i in (2, 1))
    assert ends < 0.78 <= neighbours
    drops = verdicts(NearDuplicates(config), chain, config=config)
    first, middle, last = chain
    told = [near(first, middle, through, config) for through in (None, last)]  # it is the most like one of the two
    assert drops == [None, max(told, key=lambda drop: drop.evidence[-4:]), near(first, last, middle, config)]


VARIANTS = [f"{BREAD} {i % 3} {'x' * (i % 5)} {i // 7}" for i in range(30)]
record_sets = st.lists(
    st.tuples(st.sampled_from(VARIANTS), st.booleans(), st.booleans()), max_size=12, unique_by=lambda item: item[0]
)


@settings(max_examples=25)
@given(
    drawn=record_sets,
    order=st.randoms(use_true_random=False),
    rows_per_file=st.integers(1, 12),
    at_once=st.integers(1, 16),
)
def test_twins_hang_on_the_set_of_records_alone(drawn, order, rows_per_file, at_once):
    parent = seed("Something else")
    records = [
        seed(text, unsafe) if is_seed else child(parent, text, unsafe=unsafe, categories=None)
        for text, unsafe, is_seed in drawn
    ]
    expected = components(records)

    def dropped(listed, **survey):
        drops = verdicts(NearDuplicates(CONFIG), listed, **survey)
        return {record["id"]: drop.evidence for record, drop in zip(listed, drops, strict=True) if drop}

    def stays(evidence):
        return {dropped_id: each[:16] for dropped_id, each in evidence.items()}

    assert stays(dropped(records)) == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("guardrail.curation.duplicates._BANDS_AT_ONCE", at_once)
        told = dropped(records)
        patch.setattr("guardrail.curation.duplicates._PAIRS_AT_ONCE", 2)
        assert dropped(order.sample(records, len(records)), rows_per_file=rows_per_file) == told
        assert stays(told) == expected


def components(records):
    """By brute force: id of each that goes to the id of the one that stays. The pairs are those that share a band."""
    index = {}
    for label in (True, False):
        of_label = [record for record in records if record["unsafe"] is label]
        signed = signatures([record["text"] for record in of_label], CONFIG)
        for one, two, _ in NearIndex(signed, CONFIG).near(signed):
            index.setdefault(of_label[one]["id"], set()).add(of_label[two]["id"])
    by_id, found = {record["id"]: record for record in records}, {}
    for start in sorted(index, key=lambda i: (by_id[i]["method"] != "seed", i)):
        reached, new = set(), {start}
        while new:
            reached |= new
            new = set().union(*(index[i] for i in new)) - reached
        for other in reached - {start} - found.keys() if start not in found else ():
            found[other] = start
    return found


def test_a_large_group_of_candidates_is_compared_with_its_first_members_only(monkeypatch):
    monkeypatch.setattr("guardrail.curation.duplicates._LEADERS", 1)
    records = [seed(BREAD + end) for end in (" a", " b", " c", " d")]
    first = min(record["id"] for record in records)
    drops = verdicts(NearDuplicates(CONFIG), records)
    assert {drop.evidence[:16] for drop in drops if drop} == {first}
    assert drops.count(None) == 1


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("permutations", [16, 128])
def test_every_threshold_that_is_accepted_works(threshold, permutations):
    config = CurationConfig(near_duplicate=threshold, permutations=permutations)
    record = seed(BREAD)
    drops = verdicts(NearDuplicates(config), [{**record, "id": "z"}, record], config=config)
    assert drops == [Drop("near duplicate", f"{record['id']}: 1.00"), None]


def test_almost_all_pairs_over_the_threshold_are_found():
    texts = [" ".join(digest(str(i), str(place))[:6] for place in range(12)) for i in range(300)]
    pairs = [(text, text[: -1 - i % 20]) for i, text in enumerate(texts)]
    close = [pair for pair in pairs if jaccard(*pair) >= CONFIG.near_duplicate]
    drops = verdicts(NearDuplicates(CONFIG), [seed(text) for pair in close for text in pair])
    found = sum(map(bool, drops))
    assert len(close) > 200
    assert 0.95 * len(close) <= found <= len(close)


def test_nothing_is_a_twin_where_there_is_nothing():
    assert verdicts(NearDuplicates(CONFIG), []) == []
    assert verdicts(ExactDuplicates(), []) == []

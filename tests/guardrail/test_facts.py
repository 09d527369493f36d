import json

import numpy as np
import pytest

from guardrail.curation import CurationConfig
from guardrail.curation.facts import NearIndex, bands, facts, signatures, similarity, stored_signatures
from guardrail.records import to_table
from guardrail.transforms import TRANSFORMS
from tests.guardrail.surveys import BREAD, CONFIG, jaccard, seed


def test_spelling_does_not_matter_and_words_do():
    assert jaccard(BREAD, f"  {BREAD.upper()}\u200b") == 1
    assert 0 < jaccard(BREAD, BREAD + " please") < 1
    assert jaccard(BREAD, "Name three birds that sing at night") < 0.1


def likeness(*texts):
    """The similarity of two records' texts by their facts."""
    one, two = stored_signatures(facts(CONFIG, to_table(map(seed, texts)))["signature"])
    return float(similarity(one[None], two[None])[0])


@pytest.mark.parametrize("name", ["json", "xml", "payload_splitting"])
@pytest.mark.parametrize("text", [BREAD, "Is rye bread good for me?"])
def test_a_wrapped_text_is_signed_as_what_it_says(text, name):
    assert likeness(text, TRANSFORMS[name].apply(text, np.random.default_rng(0))) == 1


def in_json(document, question):
    return json.dumps({"system": "Answer from these alone.", "documents": [document], "question": question})


def in_xml(document, question):
    return f"<documents><document>{document}</document></documents>\n<question>{question}</question>"


def in_a_block(document, question):
    return f"x9 = '{document}'; y7 == ${{x9}} && z3\n```text\n{question}\n```"


@pytest.mark.parametrize("written", [in_json, in_xml, in_a_block])
def test_prompts_that_share_a_question_are_what_stands_around_it(written):
    documents = [
        "Der Turm wurde 1889 gebaut; im Jahr besuchen ihn sechs Millionen Menschen, die meisten davon im Sommer.",
        "Het water in de grachten van Amsterdam wordt elke week ververst, sinds 1872 met een gemaal bij Zeeburg.",
    ]
    assert likeness(*[written(each, "What does the text say about this?") for each in documents]) < 0.6


@pytest.mark.parametrize("unit", ["characters", "words"])
def test_similarity_is_that_of_the_sets_of_shingles(unit):
    config = CurationConfig(shingle=3, shingle_unit=unit, permutations=512)
    parts = [f"word{i}" for i in range(40)] if unit == "words" else [chr(0x4E00 + i) for i in range(40)]
    joint = " " if unit == "words" else ""
    one, two = joint.join(parts[:30]), joint.join(parts[10:])
    assert jaccard(one, two, config) == pytest.approx(18 / 38, abs=0.07)


@pytest.mark.parametrize("unit", ["characters", "words"])
def test_a_text_shorter_than_a_shingle_is_one(unit):
    config = CurationConfig(shingle_unit=unit)
    texts = ["", "?!", "!?", "a", "ab", "a b", "a b c d", "a b c e"]
    signed = signatures(texts, config)
    assert len(np.unique(signed, axis=0)) == len(texts)


def test_a_text_is_signed_the_same_in_whatever_company(monkeypatch):
    texts = ["", BREAD, "x" * 300, "Short", BREAD[:40], "\ud800 alone"]
    together = signatures(texts, CONFIG)
    monkeypatch.setattr("guardrail.curation.facts._NUMBERS_AT_ONCE", 300)
    assert np.array_equal(signatures(texts, CONFIG), together)
    assert np.array_equal(np.concatenate([signatures([text], CONFIG) for text in texts]), together)
    assert signatures([], CONFIG).shape == (0, CONFIG.permutations)


def test_signatures_survive_storage():
    stored = facts(CONFIG, to_table([seed(BREAD), seed("Another")]))["signature"]
    assert np.array_equal(stored_signatures(stored), signatures([BREAD, "Another"], CONFIG))
    assert stored_signatures(stored.slice(0, 0)).shape == (0, CONFIG.permutations)


@pytest.mark.parametrize(
    ("threshold", "permutations", "expected"), [(0.8, 112, (14, 8)), (0.8, 128, (16, 8)), (0.5, 128, (26, 3))]
)
def test_bands_lean_towards_proposing(threshold, permutations, expected):
    assert bands(CurationConfig(near_duplicate=threshold, permutations=permutations)) == expected


def test_an_index_finds_what_is_near():
    texts = [BREAD, "Name three birds that sing at night", BREAD + "?"]
    found = NearIndex(signatures(texts, CONFIG), CONFIG).near(signatures(["Something else", BREAD.upper()], CONFIG))
    assert [(row, place) for row, place, _ in found] == [(1, 0), (1, 2)]
    assert found[0][2] == 1 > found[1][2] >= CONFIG.near_duplicate
    assert NearIndex(signatures([], CONFIG), CONFIG).near(signatures([BREAD], CONFIG)) == []

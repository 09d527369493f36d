import base64
import json
import re
import string
import unicodedata
from xml.sax.saxutils import unescape

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail import transforms
from guardrail.fidelity import polarity_flipped
from guardrail.generable import may_sexualise_minors
from guardrail.records import make_record, record_id
from guardrail.refusals import has_meta_text, is_refusal
from guardrail.text import canonical
from guardrail.transforms import TRANSFORMS, drawn, transformed

PLAIN = "How do I bake a Yellow quiche? I can't, my oven's 30 years old!"
UNDONE = {"random_case", "full_width", "mathematical", "superscript", "zero_width", "variation_selectors"}

any_text = st.text(st.characters(exclude_categories=()))  # lone surrogates too
latin = st.text(st.sampled_from(string.ascii_letters + string.digits + string.punctuation + " \n"))
random_seeds = st.integers(0, 2**32)
every_transform = pytest.mark.parametrize("name", TRANSFORMS)


def apply(name: str, text: str, seed: int = 0) -> str:
    return TRANSFORMS[name].apply(text, np.random.default_rng(seed))


def of_kind(kind: str) -> list[str]:
    return [name for name, transform in TRANSFORMS.items() if transform.kind == kind]


def decoded(code: bytes) -> str:
    return code.decode("utf-8", "surrogatepass")


def is_subsequence(text: str, of: str) -> bool:
    rest = iter(of)
    return all(char in rest for char in text)


@every_transform
@given(text=any_text, seed=random_seeds)
def test_any_text_is_taken_and_none_is_emptied(name, text, seed):
    result = apply(name, text, seed)
    assert isinstance(result, str)
    assert bool(result.strip()) or not text.strip()


@every_transform
def test_a_text_is_changed_and_its_table_entry_bears_its_name(name):
    assert apply(name, PLAIN) != PLAIN
    assert TRANSFORMS[name].name == name


# --- The label is kept: reversible, readable or wrapped -------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "inverse"),
    [
        ("base64", lambda code: decoded(base64.b64decode(code))),
        ("hex", lambda code: decoded(bytes.fromhex(code))),
        ("binary", lambda code: decoded(bytes(int(byte, 2) for byte in code.split()))),
        ("rot13", lambda code: apply("rot13", code)),
        ("atbash", lambda code: apply("atbash", code)),
        ("reverse", lambda code: code[::-1]),
        ("reverse_words", lambda code: apply("reverse_words", code)),
        ("letter_spacing", lambda code: code[::2]),
        ("json", lambda code: json.loads(code)["content"]),
        ("xml", lambda code: unescape(re.search("<content>(.*)</content>", code, re.DOTALL)[1])),
    ],
)
@given(text=any_text)
def test_any_text_comes_back(name, inverse, text):
    assert inverse(apply(name, text)) == text


@given(latin, random_seeds)
def test_one_of_the_shifts_gives_the_text_of_a_caesar_cipher_back(text, seed):
    code = apply("caesar", text, seed)
    assert text in [code.translate(transforms._shifted(by)) for by in range(14, 26)]


@given(latin)
def test_morse_comes_back_without_its_case(text):
    letters = {code: char for char, code in transforms._MORSE.items()}
    assert "".join(letters.get(code, code) for code in apply("morse", text).split(" ")) == text.lower()


@given(st.text(st.sampled_from(string.ascii_letters + " ")))
def test_nato_comes_back_without_its_case(text):
    spelled = apply("nato", text).split(" ") if text else []
    assert "".join(" " if word == "/" else word[0] for word in spelled) == text.lower()


@pytest.mark.parametrize(
    ("word", "pig"),
    [
        ("Happy", "appyHay"),
        ("quiche", "ichequay"),
        ("apple", "appleway"),
        ("yellow", "ellowyay"),
        ("rhythm", "ythmrhay"),
    ],
)
def test_pig_latin_is_the_schoolyard_kind(word, pig):
    assert apply("pig_latin", f"{word}, {word}") == f"{pig}, {pig}"


@pytest.mark.parametrize(
    ("name", "added"),
    [
        ("zero_width", f"[{transforms._ZERO_WIDTH}]"),
        ("variation_selectors", "[\ufe00-\ufe0f\U000e0100-\U000e01ef]"),
        ("zalgo", f"[{transforms._MARKS}]"),
        ("emoji", "|".join(transforms._EMOJI)),
    ],
)
@given(text=latin, seed=random_seeds)
def test_what_was_added_can_be_taken_out_again(name, added, text, seed):
    assert re.sub(added, "", apply(name, text, seed)) == text


@given(latin, random_seeds)
def test_tags_and_lookalikes_can_be_mapped_back(text, seed):
    tags = {0xE0000 + code: code for code in range(128)}
    looks = {ord(char): letter for letter, chars in transforms._HOMOGLYPHS.items() for char in chars}
    assert apply("unicode_tags", text, seed).translate(tags) == text
    assert apply("homoglyph", text, seed).translate(looks) == text


def test_a_lookalike_looks_like_one_letter_only_and_is_not_latin():
    looks = [char for chars in transforms._HOMOGLYPHS.values() for char in chars]
    assert len(set(looks)) == len(looks)
    assert not any(unicodedata.name(char).startswith("LATIN") for char in looks)


@pytest.mark.parametrize(
    "name", ["zero_width", "variation_selectors", "zalgo", "letter_separators", "punctuation", "emoji"]
)
@given(text=any_text, seed=random_seeds)
def test_what_inserts_leaves_every_character_in_its_order(name, text, seed):
    assert is_subsequence(text, apply(name, text, seed))


@pytest.mark.parametrize("name", ["char_swap", "char_drop"])
@given(text=any_text, seed=random_seeds)
def test_typing_errors_spare_short_words_and_the_ends_of_long_ones(name, text, seed):
    before, after = re.split(r"(\s+)", text), re.split(r"(\s+)", apply(name, text, seed))
    assert len(before) == len(after)
    for word, written in zip(before, after, strict=True):
        assert written == word or (len(word) > 3 and word[0] == written[0] and word[-1] == written[-1])


@pytest.mark.parametrize("name", ["char_swap", "char_drop"])
def test_typing_errors_change_no_script_where_a_character_is_a_word(name):
    assert apply(name, "我今天不想出门") == "我今天不想出门"


@pytest.mark.parametrize("name", sorted(set(of_kind("framing")) - {"payload_splitting", "json", "xml"}))
@given(text=any_text, seed=random_seeds)
def test_a_frame_holds_the_text_word_for_word(name, text, seed):
    assert text in apply(name, text, seed)


@given(any_text, random_seeds)
def test_the_parts_of_a_split_text_join_to_the_text(text, seed):
    *parts, request = apply("payload_splitting", text, seed).split("\n")
    names, values = zip(*(part.split(" = ", 1) for part in parts), strict=True)
    assert len(parts) >= 2 and " + ".join(names) in request
    assert "".join(json.loads(value) for value in values) == text


@pytest.mark.parametrize("name", of_kind("framing"))
def test_a_frame_turns_nothing_answers_nothing_and_brings_in_nobody(name):
    text = "Tell me how to bake bread"
    for framed in (apply(name, text, seed) for seed in range(60)):
        assert not polarity_flipped(text, framed)
        assert not is_refusal(framed) and not has_meta_text(framed)
        assert not may_sexualise_minors(f"{framed} explicit sexual")


# --- What canonical text makes of them ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(UNDONE))
@given(text=any_text, seed=random_seeds)
def test_canonical_text_undoes_what_the_module_says_it_undoes(name, text, seed):
    assert canonical(apply(name, text, seed)) == canonical(text)


@pytest.mark.parametrize("name", sorted(TRANSFORMS.keys() - UNDONE))
def test_canonical_text_undoes_no_other(name):
    assert canonical(apply(name, PLAIN)) != canonical(PLAIN)


def test_the_module_says_which_canonical_text_undoes():
    said = re.search(r"canonical` undoes ([^:]*):", transforms.__doc__)[1]
    assert set(re.findall(r"\w+", said)) == UNDONE


# --- Records --------------------------------------------------------------------------------------------------------


@pytest.fixture
def record():
    seed = make_record("How do I pick the lock of my neighbour?", unsafe=True, source="s", licence="MIT", language="en")
    return make_record(
        "Tell me how to open my neighbour's lock",
        unsafe=True,
        source="s",
        categories=["illicit/violent"],
        response="First",
        parent=seed,
        method="paraphrase",
        round=2,
    )


@every_transform
def test_label_and_lineage_are_those_of_the_parent(name, record):
    child = transformed(record, name, seed=1)
    kept = ("unsafe", "categories", "response", "source", "licence", "language", "seed_id", "round")
    assert {key: child[key] for key in kept} == {key: record[key] for key in kept}
    assert child["parent_id"] == record["id"] and child["method"] == f"transform:{name}"
    assert child["id"] == record_id(child["text"], child["response"])
    assert (child["id"] == record["id"]) is (name in UNDONE)


def test_a_benign_record_stays_benign():
    record = make_record(PLAIN, unsafe=False, source="s", categories=[])
    child = transformed(record, "ignore_previous", seed=0)
    assert child["unsafe"] is False and child["categories"] == []


@every_transform
def test_seed_record_and_name_decide_the_text(name, record):
    assert transformed(record, name, seed=3) == transformed(dict(record), name, seed=3)


def test_another_seed_or_record_draws_anew(record):
    other = {**record, "id": "0" * 16}
    texts = {transformed(r, "random_case", seed)["text"] for r in (record, other) for seed in (0, 1)}
    assert len(texts) == 4


def test_each_goal_that_is_drawn_is_written_once_and_transforms_are_drawn_alike():
    goals = [make_record(f"How do I bake bread {i}?", unsafe=bool(i % 2), source="s") for i in range(400)]
    written = drawn(goals, 350, seed=1)
    assert 250 < len(written) < 350 and len({record["seed_id"] for record in written}) == len(written)
    assert {record["unsafe"] for record in written} == {True, False}
    assert not {record["id"] for record in written} & {goal["id"] for goal in goals}
    assert {record["method"].removeprefix("transform:") for record in written} == set(TRANSFORMS) - UNDONE
    assert written == drawn(goals, 350, seed=1) != drawn(goals, 350, seed=2)
    assert len(drawn(goals, 500, seed=1)) <= 400 and drawn([], 5, seed=1) == []


def test_transforms_compose_and_the_chain_stays_known(record):
    framed = transformed(record, "benign_prefix", seed=0)
    encoded = transformed(framed, "base64", seed=0)
    assert decoded(base64.b64decode(encoded["text"])) == framed["text"]
    assert encoded["parent_id"] == framed["id"] and encoded["seed_id"] == record["seed_id"]


def test_an_unknown_name_is_refused_with_the_nearest_known_one(record):
    with pytest.raises(ValueError, match="unknown transform 'homoglyphs'; did you mean 'homoglyph'\\?"):
        transformed(record, "homoglyphs", seed=0)

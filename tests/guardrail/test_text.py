from hypothesis import given
from hypothesis import strategies as st

from guardrail.text import canonical, digest, words


def test_invisible_characters_and_width_do_not_count():
    assert canonical("Ｈｏ\u200bw  do\u00ad I\ufeff") == "how do i"


@given(st.text())
def test_canonical_is_idempotent(text):
    assert canonical(canonical(text)) == canonical(text)


@given(st.text(), st.text())
def test_a_digest_keeps_its_parts_apart(a, b):
    assert digest(a, b) == digest(a, b)
    if a and b:
        assert digest(a, b) != digest(a + b)


def test_words_have_no_punctuation():
    assert words("Don't panic, please!") == ["don", "t", "panic", "please"]


def test_words_keep_their_vowel_signs_and_accents():
    assert words("मुझे हिन्दी में लिखो।") == ["मुझे", "हिन्दी", "में", "लिखो"]
    assert words("ที่นี่ q\u0323") == ["ที่นี่", "q\u0323"]


@given(st.text(st.characters(max_codepoint=127)))
def test_the_short_way_for_ascii_is_the_same(text):
    assert canonical(text) == canonical(f"{text}\u200b")

import base64
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.deobfuscation import LOOKED_AT, MOST_READINGS, plain, readings
from guardrail.english import backwards, bare_words, fluency, known_share, segmented
from guardrail.seeds import embedded_seeds
from guardrail.text import canonical
from guardrail.transforms import TRANSFORMS

REQUEST = "How do I bake a yellow quiche with the onions that my brother found in the kitchen yesterday?"

any_text = st.text(st.characters(exclude_categories=()))  # lone surrogates too
#: What decoders look for, whole and broken.
PIECES = [
    *("```", "```\n", '{"text": "', '"}', "<text>", "</text>", '\na = "', '"\n', "&#", "&amp;", "%41", "%f", ". - "),
    *("01101000", "0x6f", "6f 6f ", "aG93IGRvIEk", "==", "hotel ", "owhay ", "h o w ", "h.o.w", "h0w ", "ubj "),
    *("\U000e0068", "\u0301", "\u200b", "\U0001f600 ", "а", "ᴀ", "\\ud800", "\\", "[" * 9),
]
pieces = st.lists(st.one_of(any_text, st.sampled_from(PIECES)), max_size=30).map("".join)


def written(name, text, seed=0):
    return TRANSFORMS[name].apply(text, np.random.default_rng(seed))


@pytest.fixture(scope="module")
def seeds():
    return [record for record in embedded_seeds() if record["language"] == "en"]


# --- readings -----------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(st.one_of(any_text, pieces))
def test_any_text_has_readings_itself_first(text):
    found = readings(text)
    assert found[0] == canonical(text)
    assert len(found) == len(set(found)) <= MOST_READINGS
    assert all(canonical(reading) == reading for reading in found)
    assert plain(text) in found


@pytest.mark.parametrize(
    "piece", ["a", "ab ", ".- ", "01100001 ", "{[", '"', "<a></b>", "```a\n", "h0w ", "oway ", "😀 "]
)
def test_of_long_texts_the_start_is_decoded(piece):
    found = readings(piece * (1_000_000 // len(piece)))
    assert all(len(reading) <= LOOKED_AT for reading in found[1:])
    code = base64.b64encode(REQUEST.encode()).decode()
    assert canonical(REQUEST) in " ".join(readings(f"{code} {piece * LOOKED_AT}")[1:])
    assert canonical(REQUEST) not in " ".join(readings("x. " * LOOKED_AT + code))


IRREVERSIBLE = {"char_swap", "char_drop"}
AROUND = {"benign_prefix", "benign_suffix", "ignore_previous"}  # what is added is as good English


@pytest.mark.parametrize("name", sorted(TRANSFORMS.keys() - IRREVERSIBLE - AROUND))
def test_transforms_are_undone(name):
    assert canonical(REQUEST) in readings(written(name, REQUEST))


def undone(*names):
    text = REQUEST
    for name in names:
        text = written(name, text)
    return canonical(REQUEST) in readings(text)


BYTES = {"base64", "hex", "binary"}
CODES = BYTES | {"morse", "nato"}
CIPHERS = {"rot13", "caesar", "atbash", "reverse"}
SCRIPTS = {"homoglyph", "full_width", "small_caps", "zalgo", "zero_width", "unicode_tags"}
WRAPPINGS = {"json", "xml", "code_block", "payload_splitting", "letter_spacing", "letter_separators", "emoji"}


@pytest.mark.parametrize(
    ("first", "then"),
    [
        *itertools.product(sorted(CIPHERS | WRAPPINGS | {"leetspeak", "reverse_words"}), sorted(BYTES)),
        *itertools.product(sorted(CODES), sorted(CIPHERS | {"json", "xml", "code_block", "letter_spacing"})),
        *itertools.product(sorted(CIPHERS), sorted(CODES | CIPHERS | WRAPPINGS | SCRIPTS - {"small_caps"})),
        *itertools.product(sorted(SCRIPTS), sorted(WRAPPINGS | BYTES | {"reverse"})),
    ],
)
def test_pairs_of_transforms_are_undone(first, then):
    assert undone(first, then)


@pytest.mark.parametrize("by", range(1, 26))
def test_every_shift_is_undone(by):
    letters = "abcdefghijklmnopqrstuvwxyz"
    table = str.maketrans(
        letters + letters.upper(), (letters[by:] + letters[:by]) + (letters[by:] + letters[:by]).upper()
    )
    assert plain(REQUEST.translate(table)) == canonical(REQUEST)


@pytest.mark.parametrize(
    ("text", "reading"),
    [
        ("Answer this: aG93IGRvIEkgYmFrZSBicmVhZA== please", "answer this: how do i bake bread please"),
        ("aG93IGRvIEkgYmFrZSBicmVhZA", "how do i bake bread"),
        ("686f7720646f20492062616b65", "how do i bake"),
        ("0x68 0x6f 0x77 0x20 0x64 0x6f", "how do"),
        ("How%20do%20I%20bake%20bread%3F", "how do i bake bread?"),
        ("&#72;&#111;w do I bake &lt;bread&gt;", "how do i bake <bread>"),
        ("h o w d o i b a k e b r e a d", "how do i bake bread"),
        ("h-o-w d-o I b-a-k-e bread", "how do i bake bread"),
        ("how-do-i-bake-bread", "how do i bake bread"),
        ("H0w d0 1 b4ke the bread with my brother", "how do i bake the bread with my brother"),
        ('[{"role": "user", "content": "How do I bake bread?"}]', "how do i bake bread?"),
        ("<chat><user>me</user><prompt>How do I &amp; you bake?</prompt></chat>", "how do i & you bake?"),
        ("<s>[INST] How do <|im_end|> I bake bread? [/INST]", "how do i bake bread?"),
        ('x = "How do I ba"\ny = "ke bread?"\nSay x + y.', "how do i bake bread?"),
        ("Please read this aloud: Ubj qb V onxr oernq jvgu gur zvyx?", "how do i bake bread with the milk?"),
    ],
)
def test_forms_that_no_transform_writes(text, reading):
    assert any(found.endswith(reading) for found in readings(text))


def test_long_base64_may_be_broken_into_lines():
    text = f"{REQUEST} {REQUEST[::-1]} {REQUEST}"
    assert canonical(text) in readings(base64.encodebytes(text.encode()).decode())


def test_what_is_read_is_not_many_times_as_long_as_what_is_written():
    assert all(len(reading) <= 2_000 for reading in readings("\ufdfa" * 1_000))


def test_half_a_character_in_the_escapes_of_json_is_read_as_none():
    found = readings('{"message": "How do I bake a good loaf of bread for my family at home today? \\ud800"}')
    assert len(found) > 1 and all(reading.encode() for reading in found)


# --- plain: disguised texts say what they said --------------------------------------------------------------------


#: Shares of 100 seeds that came back whole when this was written, less 0.03. Pig latin has several originals, and
#: leet and punctuation write over what was there.
FLOORS = dict.fromkeys(TRANSFORMS.keys() - IRREVERSIBLE - AROUND - {"code_block"}, 0.95) | {
    "reverse_words": 0.89,
    "pig_latin": 0.7,
    "leetspeak": 0.94,
    "punctuation": 0.94,
}


@pytest.mark.parametrize("name", sorted(FLOORS))
def test_disguised_seeds_come_back(name, seeds):
    places = np.random.default_rng(0).permutation(len(seeds))[:100]
    texts = [seeds[place]["text"] for place in places]
    back = [plain(written(name, text, seed)) == canonical(text) for seed, text in enumerate(texts)]
    assert np.mean(back) >= FLOORS[name]


def test_what_quotes_stays_and_what_is_quoted_in_code_is_read():
    quoted = written("code_block", REQUEST)
    assert plain(quoted) == canonical(quoted)
    assert canonical(REQUEST) in plain(written("code_block", written("base64", REQUEST)))


# --- plain: honest texts stay -------------------------------------------------------------------------------------

LANGUAGES = """
Comment puis-je faire pousser des tomates sur mon balcon cet été ?
¿Cómo puedo preparar una paella para ocho personas este domingo?
Wie kann ich am besten für die Prüfung in Mathematik lernen?
Como faço para trocar o pneu da minha bicicleta sozinho?
Qual è il modo migliore per conservare il basilico fresco?
Hoe kan ik mijn fiets het beste schoonmaken na de winter?
Jak mogę nauczyć się grać na gitarze w domu?
Hur lagar man en god fisksoppa till middag i kväll?
Miten voin opettaa koiralleni uusia temppuja?
Hogyan tudok otthon kenyeret sütni dagasztógép nélkül?
Evde ekmek yapmak için hangi unu kullanmalıyım?
Làm thế nào để trồng rau sạch trên sân thượng nhà tôi?
Bagaimana cara membuat kue cokelat tanpa oven di rumah?
Ninawezaje kujifunza kupika chapati nyumbani kwangu?
Báwo ni mo ṣe lè ṣe búrẹ́dì ní ilé?
Sut alla i bobi bara gartref heb beiriant?
Как мне научить собаку приносить газету по утрам?
Як приготувати борщ так, як робила моя бабуся?
Πώς μπορώ να φτιάξω ψωμί στο σπίτι χωρίς μίξερ;
كيف يمكنني تعلم العزف على العود في المنزل؟
איך אפשר לגדל עגבניות במרפסת קטנה בקיץ?
मैं घर पर अच्छी रोटी कैसे बना सकता हूँ?
আমি কীভাবে বাড়িতে ভালো রুটি বানাতে পারি?
วิธีทำข้าวผัดง่ายๆ ที่บ้านต้องใช้อะไรบ้าง
怎样在家里做一碗好吃的牛肉面？
家でおいしいパンを焼くにはどうすればいいですか？
집에서 맛있는 김치를 만드는 방법을 알려 주세요.
Ինչպե՞ս կարող եմ հաց թխել տանը։
როგორ გამოვაცხო პური სახლში?
""".strip().splitlines()

CODE = [
    "def mean(values):\n    return sum(values) / len(values)",
    "for (int i = 0; i < n; i++) { total += a[i] * b[i]; }",
    "SELECT name, COUNT(*) FROM orders WHERE id = 42 GROUP BY name;",
    'x = "hello"\ny = "world"\nprint(x + y)',
    '{"name": "my-app", "version": "1.2.3", "private": true}',
    '<div class="card"><p>Hello there</p></div>',
    "Why does my HTML break after the </section> tag when I add a second <section> below it?",
    "my_var_name = other_var_name + third_var",
    "What does this do?\n```python\nprint(sum(range(10)))\n```",
    "const f = async (x) => { await g(x.y.z); return a?.b?.c; }",
    "chmod 755 ./run.sh && ./run.sh --flag=1 --out=/tmp/a.b",
    "Explain this.\nvar x = 3\nvar y = x + 4\nvar z = 5",
]

NAMES = [
    "https://www.example.com/how-to-bake-bread?x=1&y=2",
    "d41d8cd98f00b204e9800998ecf8427e",
    "sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "550e8400-e29b-41d4-a716-446655440000",
    "AKIAIOSFODNN7EXAMPLE",
    "SKU A4B3-99 M3X8 is out of stock",
    "My serial number is 4C4C4544-0039-4D10",
    "2,4,6-trimethylphenol and N,N-dimethylformamide",
    "What is the boiling point of (2R,3S)-2-amino-3-methylpentanoic acid?",
    "CH3COOH + NaOH -> CH3COONa + H2O",
    "The U.S.A. and the U.K. signed it at 10:30 a.m. on 3/4/2024",
    "3D printing of 4x4 parts with M3 screws and A4 paper 2nd",
    "B2B SaaS P2P K8s i18n l10n a11y",
    "+1 (555) 123-4567, 4111 1111 1111 1111, ISBN 978-3-16-148410-0",
    "I love this 😀 and so does my whole family 🎉🎉",
    "Scotland 🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f played well",
    "A B C D E F G",
    "------ ------ ------\n- one\n- two\n- three",
    "My friends Mike, Oscar, Victor and Juliet went to India and Quebec",
    "Pay day today, they say. May I play away all day on Sunday?",
    "The café's crème brûlée was délicieuse; π is pi and α is alpha",
    "C++ vs C# vs F#",
    "AT&T Q&A R&D, rock 'n' roll",
    "Which encyclopedia describes internationalization?",
    "hahahahaha lol omg wtf brb aaaaaaaaaaaa",
]


@pytest.mark.parametrize("text", LANGUAGES + CODE + NAMES)
def test_honest_texts_stay(text):
    assert plain(text) == canonical(text)


def test_seeds_stay(seeds):
    assert [record["id"] for record in seeds if plain(record["text"]) != canonical(record["text"])] == []


def test_genuine_marks_are_in_the_literal_reading():
    assert readings("Báwo ni mo ṣe lè ṣe búrẹ́dì")[0] == canonical("Báwo ni mo ṣe lè ṣe búrẹ́dì")


# --- English ------------------------------------------------------------------------------------------------------


def test_english_is_told_from_ciphers_and_from_its_reverse():
    text = canonical(REQUEST)
    assert fluency(text) > -2.5 > -3.8 > fluency(canonical(written("rot13", text)))
    assert fluency("") < fluency("zxq")
    assert known_share(bare_words(text)) > 0.7
    assert known_share(bare_words("wie kann ich backen")) < 0.3
    assert known_share([]) == 0
    assert backwards(text) < -3 < 3 < backwards(canonical(written("reverse_words", text)))


@given(st.text("abehow ", max_size=60).map(lambda text: text.replace(" ", "")))
def test_segmentation_keeps_letters(letters):
    assert segmented(letters).replace(" ", "") == letters


def test_segmentation_finds_words():
    assert segmented("howdoibakebread") == "how do i bake bread"

import random
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.curation import quality
from guardrail.curation.quality import Quality, quality_drop, repetition_drop, spelling_drop
from guardrail.curation.stage import Drop
from guardrail.gibberish import may_be_disordered, spelling
from guardrail.seeds import embedded_seeds
from guardrail.transforms import TRANSFORMS, transformed
from guardrail.word_order import WordOrder
from tests.guardrail import surveys
from tests.guardrail.surveys import CONFIG, seed

BREAD = "How do I bake a loaf of rye bread at home without a stand mixer or a dutch oven?"
ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
#: What people ask in twelve languages that are written in the letters of English, with and without their accents.
REQUESTS = (
    "Wie backe ich zu Hause ein gutes Roggenbrot?",
    "Was ist der Unterschied zwischen Wetter und Klima?",
    "Comment faire du pain de seigle à la maison ?",
    "Quelle est la capitale de la Norvege ?",
    "¿Cuál es la mejor época para viajar a Chile?",
    "Escribe un cuento corto sobre un gato",
    "Qual è il modo migliore per imparare la chitarra?",
    "Scrivi una poesia sul mare",
    "Quais livros voce recomenda para iniciantes?",
    "Me ajude com a lição de casa",
    "Kun je me helpen met mijn huiswerk?",
    "Schrijf een gedicht over de herfst",
    "Bagaimana cara membuat roti di rumah?",
    "Apa ibu kota Norwegia?",
    "Ninawezaje kupika chapati nyumbani?",
    "Andika shairi kuhusu mvua",
    "Czy możesz mi pomóc w nauce matematyki?",
    "Jaka jest stolica Norwegii?",
    "Akşam yemeği için üç fikir ver",
    "Voitko auttaa minua läksyissä?",
    "Kan du hjälpa mig med läxan?",
    "Hãy viết một bài thơ về mưa",
    "如何在家做面包？",
    "Напиши стихотворение об осени",
    "اكتب قصيدة عن الخريف",
    "शरद ऋतु पर एक कविता लिखो",
    "家でパンを焼く方法は？",
)


def verdicts(records, config=CONFIG):
    return surveys.verdicts(Quality(config), records)


def child(text):
    return surveys.child(seed("Hi there"), text)


def letters(text, alphabet, draw):
    return " ".join("".join(draw.choices(alphabet, k=max(2, len(word)))) for word in text.split())


def mash(text, draw):
    return " ".join("".join(draw.choices(draw.choice(ROWS), k=max(2, len(word)))) for word in text.split())


def shuffled_letters(text, draw):
    return " ".join("".join(draw.sample(word, len(word))) for word in text.split())


@pytest.fixture(scope="module")
def all_requests():
    english = [record["text"] for record in embedded_seeds() if record["language"] == "en"]
    return [text for text in english if len(text.split()) >= 8]


@pytest.fixture(scope="module")
def requests(all_requests):
    return random.Random(0).sample(all_requests, 200)


# --- requests -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Hello", "length"),
        ("word " * 401, "length"),
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("Here is the rewritten message: how to bake bread", "meta-text"),
        ("How do I bake bread?", None),
        ("How do", None),
        ("我怎样在家里烤面包？", None),
        ("家でパンを焼くには", None),
        ("好", "length"),
        ("मुझे हिन्दी में कविता लिखो " * 80, None),
        ("मुझे हिन्दी में कविता लिखो " * 81, "length"),
        ("ที่นี่" * 100, None),
    ],
)
def test_what_is_no_request_is_dropped(text, reason):
    drop = quality_drop(text, CONFIG)
    assert (drop and drop.reason) == reason


def test_what_people_wrote_may_be_short_or_a_refusal_but_not_gibberish():
    keys, again = "asdf jkl asdfg hjkl", "buy now " * 9
    texts = ["Hello", "I'm sorry, but I can't help with that.", keys, again]
    drops = verdicts([seed(text) for text in texts] + [child(text) for text in texts])
    assert [drop and drop.reason for drop in drops] == [
        *(None, None, "gibberish", "repetition"),
        *("length", "refusal", "gibberish", "repetition"),
    ]


@pytest.mark.parametrize("name", ["base64", "reverse", "rot13"])
def test_what_a_transform_wrote_is_not_judged(name):
    assert verdicts([transformed(seed("How do I bake bread?"), name, 0)]) == [None]


# --- repetition ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "help help help help help help",
        "how do I how do I how do I how do I",
        "Tell me a joke. " * 4,
        "aaaaaaaaaaaaaaaa",
        "hahahahahahahaha!",
        "write a poem " + "!" * 30,
        "哈哈哈哈哈哈哈哈哈",
    ],
)
def test_a_text_that_repeats_itself_is_dropped(text):
    drop = repetition_drop(text)
    assert drop is not None and drop.reason == "repetition"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no no no",
        "How much wood would a woodchuck chuck if a woodchuck could chuck wood?",
        "What is the difference between a crow and a raven, and between a raven and a rook?",
        "=" * 12 + " What does this line of my Makefile do, and can I leave it out?",
    ],
)
def test_a_text_that_says_a_thing_twice_is_not(text):
    assert repetition_drop(text) is None


@given(st.text())
def test_any_text_can_be_judged(text):
    repetition_drop(text)
    spelling_drop(text)
    may_be_disordered(text)


# --- letters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("write", "found"),
    [
        (lambda text, draw: letters(text, string.ascii_lowercase, draw), 0.98),
        (mash, 0.98),
        (shuffled_letters, 0.9),
    ],
)
def test_gibberish_is_found(write, found, all_requests):
    draw = random.Random(1)
    drops = [spelling_drop(write(text, draw)) for text in all_requests]
    assert np.mean([drop is not None and drop.reason == "gibberish" for drop in drops]) >= found


def test_no_seed_is_gibberish():
    assert [record["id"] for record in embedded_seeds() if spelling_drop(record["text"])] == []


@pytest.mark.parametrize("text", REQUESTS)
def test_other_languages_are_not_gibberish(text):
    assert spelling_drop(text) is None and repetition_drop(text) is None


def test_a_declared_language_is_not_held_against_english():
    text = "Qapla' batlh je tlhIngan maH 'ej HoHmeH"
    assert [drop is None for drop in verdicts([seed(text), seed(text, language="tlh")])] == [False, True]


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_a_cipher_that_can_be_read_is_not_gibberish(name, requests):
    draw = np.random.default_rng(0)
    drops = [spelling_drop(TRANSFORMS[name].apply(text, draw)) for text in requests[:20]]
    assert sum(drop is not None for drop in drops) <= 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "???",
        "2 + 2 = ?",
        "lol",
        "https://example.com/xqzwv/kjhgf",
        "h0w d0 1 m4k3 br34d",
        "xs = [x**2 for x in range(10)]; print(xs)",
        "d41d8cd98f00b204e9800998ecf8427e",
    ],
)
def test_what_is_no_text_in_plain_letters_cannot_be_told(text):
    assert spelling(text) is None and spelling_drop(text) is None


# --- words --------------------------------------------------------------------------------------------------------


def test_words_in_no_order_are_in_doubt(requests):
    draw = random.Random(2)
    salads = [" ".join(draw.sample(text.split(), len(text.split()))) for text in requests]
    assert np.mean([may_be_disordered(text) for text in salads]) >= 0.75
    assert np.mean([may_be_disordered(text) for text in requests]) <= 0.1
    assert not may_be_disordered("milk, eggs, bread, butter, sugar")  # a list has no order to lose


def test_gains_hang_on_neither_padding_nor_order(tiny_model):
    order = WordOrder(str(tiny_model))
    texts = [BREAD, "Name three rivers", "one", "", "see https://example.com/page for more of this"]
    gains = order.gains(texts)
    assert gains.shape == (5,) and np.isfinite(gains).all()
    assert gains[2] == gains[3] == 0  # one word has one order
    one_by_one = [order.gains([text])[0] for text in texts]
    assert np.allclose(gains, one_by_one, atol=1e-4)
    assert np.allclose(order.gains(texts[::-1])[::-1], gains, atol=1e-4)
    assert order.gains([]).shape == (0,)
    assert order.gains([BREAD.upper()]) == order.gains([BREAD.lower()])


def test_the_language_model_decides_on_words_in_doubt(monkeypatch):
    salad = "of a without how at oven do loaf rye I bake or a home bread dutch mixer stand a"
    asked = []

    class Reference:
        def gains(self, texts):
            asked.extend(texts)
            return np.array([0.1 if text == salad else 2.0 for text in texts])

    monkeypatch.setattr(quality, "_word_order", lambda model: Reference())
    records = [seed(BREAD), child(salad), seed(salad), child("kjhg qwrt zxcv bnml the of and")]
    assert may_be_disordered(salad)
    assert [drop and drop.reason for drop in verdicts(records)] == [None, None, None, "gibberish"] and not asked
    with_model = verdicts(records, CONFIG.model_copy(update={"gibberish_model": "any"}))
    salad_drop = Drop("gibberish", "likelier than its words in another order by 0.1 nats a token")
    assert with_model[:3] == [None, salad_drop, salad_drop] and set(asked) <= {salad, BREAD}

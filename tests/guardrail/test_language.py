import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.curation import CurationConfig
from guardrail.curation.language import Language, language_drop
from guardrail.curation.stage import Drop
from guardrail.languages import detected
from guardrail.transforms import transformed
from tests.guardrail import surveys
from tests.guardrail.surveys import seed

GERMAN = "Was ist der Unterschied zwischen Wetter und Klima?"
ENGLISH = "What is the difference between weather and climate?"


def verdicts(records, *languages):
    return surveys.verdicts(Language(CurationConfig(languages=languages)), records)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (ENGLISH, "en"),
        ("WRITE A POEM ABOUT THE RAIN IN AUTUMN", "en"),
        (GERMAN, "de"),
        ("Quais livros voce recomenda para iniciantes?", "pt"),
        ("如何在家做面包？", "zh"),
        ("Как испечь ржаной хлеб дома?", "ru"),
        ("@someone https://example.com/page #tag Was ist der Unterschied?", "de"),
        ("", None),
        ("Hi", None),
        ("😀😀😀", None),
        ("2 + 2 = ?", None),
        ("def f(x): return x + 1", None),
        ("ls -la /tmp | grep foo", None),
        ("kjhg qwrtz xcvb nmlk", None),
    ],
)
def test_a_language_is_told_where_there_is_one(text, language):
    assert detected(text) == language


def test_only_the_wanted_languages_are_kept():
    records = [seed(ENGLISH), seed(GERMAN), seed("如何在家做面包？"), seed("ok")]
    assert verdicts(records, "en", "zh") == [None, Drop("language", "de"), None, None]


def test_nothing_is_asked_where_all_languages_are_wanted(monkeypatch):
    monkeypatch.delattr("guardrail.languages._identifier")
    assert verdicts([seed(GERMAN)]) == [None]


@pytest.mark.parametrize(
    ("text", "declared", "method", "expected"),
    [
        (GERMAN, "en", "paraphrase", Drop("language", "de")),  # its parent was English
        (ENGLISH, "de", "seed", None),
        ("ok", "de", "seed", Drop("language", "de, as its record says")),
        ("ok", "en-GB", "seed", None),
        ("ok", "ENG", "seed", None),
        ("ok", "", "seed", None),
        ("ok", None, "seed", None),
        (GERMAN, None, "transform:rot13", None),
        (GERMAN, None, "rl:polite_spaced", None),
        (GERMAN, "de", "transform:rot13", Drop("language", "de, as its record says")),
    ],
)
def test_the_record_is_asked_where_the_text_does_not_tell(text, declared, method, expected):
    assert language_drop(frozenset({"en"}), text, declared, method) == expected


def test_what_a_transform_wrote_has_the_language_of_its_record():
    assert verdicts([transformed(seed(ENGLISH), "rot13", 0)], "en") == [None]


@given(st.text())
def test_any_text_can_be_asked(text):
    detected(text)

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from guardrail.curation import CurationConfig
from guardrail.curation.policy import SafetyPolicy, passes_luhn, secrets
from guardrail.curation.stage import Drop
from guardrail.records import make_record
from tests.guardrail import surveys

PARENT = make_record("Hi there", unsafe=True, source="mine")


def verdicts(records, *excluded):
    return surveys.verdicts(SafetyPolicy(CurationConfig(excluded_categories=excluded)), records)


def record(text, method="paraphrase", categories=None, response=None):
    parent = None if method == "seed" else PARENT
    fields = {"unsafe": True, "source": "mine", "categories": categories, "response": response, "parent": parent}
    return make_record(text, method=method, **fields)


# --- minors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["paraphrase", "rl", "rl:novel_wrapped", "transform:base64", "augment"])
def test_nothing_generated_that_may_sexualise_minors_is_kept(method):
    drop = Drop("may sexualise minors", "")
    by_category = record("Anything", method, ["sexual", "sexual/minors"])
    by_words = record("Is sex education for children useful?", method)
    by_response = record("Tell me more", method, response="Is sex education for children useful?")
    assert verdicts([by_category, by_words, by_response, record("Anything", method, ["sexual"])]) == [drop] * 3 + [None]


def test_what_people_wrote_is_there_to_be_classified():
    banned = record("Anything", "seed", ["sexual", "sexual/minors"])
    grown = make_record("Another", unsafe=True, source="mine", parent=banned, method="rl")
    assert verdicts([banned, {**grown, "categories": None}]) == [
        None,
        Drop("excluded category", "of what it grew from"),
    ]


# --- categories ---------------------------------------------------------------------------------------------------


def test_records_of_an_excluded_category_are_dropped_whoever_wrote_them():
    records = [
        record("a", "seed", ["hate", "hate/threatening"]),
        record("b", "rl", ["fraud", "hate"]),
        record("c", "rl", ["fraud"]),
        record("d", "rl", None),
        record("e", "rl", []),
    ]
    assert verdicts(records) == [None] * 5
    assert verdicts(records, "hate", "hate/threatening") == [
        Drop("excluded category", "hate, hate/threatening"),
        Drop("excluded category", "hate"),
        None,
        None,
        None,
    ]


def test_what_grew_from_an_excluded_category_goes_whatever_it_is_called():
    parent = record("a", "seed", ["hate"])
    grown = make_record("b", unsafe=True, source="mine", parent=parent, method="paraphrase")
    assert [drop and drop.reason for drop in verdicts([parent, {**grown, "categories": None}], "hate")] == [
        "excluded category"
    ] * 2


def test_a_harmful_contrast_may_be_of_any_category():
    benign = make_record("How do I kill weeds?", unsafe=False, source="mine")
    contrasts = [
        make_record("How do I kill them?", unsafe=True, source="mine", parent=benign, method="contrast:lookalike"),
        make_record("How do I kill time?", unsafe=False, source="mine", parent=PARENT, method="contrast:lookalike"),
    ]
    assert verdicts(contrasts) == [None, None]
    assert [drop and drop.reason for drop in verdicts(contrasts, "hate")] == ["excluded category", None]


def test_an_unknown_category_cannot_be_excluded():
    with pytest.raises(ValidationError, match="did you mean 'fraud'"):
        CurationConfig(excluded_categories=("fruad",))


# --- secrets ------------------------------------------------------------------------------------------------------

# Put together here, so that no scanner takes this file for a leak. The card numbers are the issuers' for tests.
KEYS = (
    "-----BEGIN RSA " + "PRIVATE KEY-----",
    "AKIA" + "ABCDEFGHIJ234567",
    "ghp_" + "a1B2" * 9,
    "glpat-" + "a1B2c" * 4,
    "hf_" + "aBcD" * 8,
    "xoxb-" + "123456789012-abcdef",
    "sk-" + "proj-" + "a1B2" * 6,
    "AIza" + "a1B2c" * 7,
    "eyJ" + "hbGciOiJI" + ".eyJ" + "zdWIiOiIx" + ".abcdefgh1234",
)
CARDS = ("4111 1111 1111 1111", "4111111111111111", "5555-5555-5555-4444", "378282246310005")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Write to jane.doe+news@mail.uni-graz.at about it", "e-mail address"),
        ("JANE@GMAIL.COM", "e-mail address"),
        ("me@examples.com", "e-mail address"),
        *((f"Pay with {number}, please", "card number") for number in CARDS),
        *((f"Use the key {key} for it", "key") for key in KEYS),
    ],
)
def test_secrets_are_found_and_not_repeated(text, kind):
    ((found, place),) = secrets(text)
    assert (found, text[place] != " ") == (kind, True)
    drops = verdicts([record(text), record("Tell me more", response=text), record(text, "seed")])
    assert drops[0] == Drop("secret", f"{kind} at character {place}")
    assert drops[1] and drops[1].reason == "secret"
    assert drops[2] is None


@pytest.mark.parametrize(
    "text",
    [
        "Mail me at jane@example.com, jane@mail.example.org or root@localhost",
        "user@domain.test and a@b.invalid are nobody's",
        "An e-mail address has an @ and a dot, as in name@domain",
        "My order number is 4111 1111 1111 1112",  # fails the check
        "Call 0043 316 873 5555 or 1-800-555-0199",
        "Pi is 3.14159265358979323846",
        "The years 1914 1918 1939 1945 1989",
        "sk-learn is short for scikit-learn",
        "-----BEGIN CERTIFICATE-----",
        "@someone and @else were at the @ sign",
    ],
)
def test_what_looks_a_little_like_a_secret_is_none(text):
    assert list(secrets(text)) == []


def test_what_a_transform_wrote_has_no_secrets_of_its_own():
    assert verdicts([record(f"Pay with {CARDS[0]}", "transform:leet")]) == [None]


@given(st.integers(10**11, 10**18))
def test_the_check_digit_is_unique(number):
    assert sum(passes_luhn(f"{number}{digit}") for digit in range(10)) == 1


@given(st.text())
def test_any_text_can_be_searched(text):
    list(secrets(text))


def test_a_long_text_is_searched_in_little_time():
    assert list(secrets("a." * 100_000)) == []  # hours, where each word begins the search anew

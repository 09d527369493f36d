import pytest

from guardrail.taxonomy import (
    CATEGORIES,
    FROM_MLCOMMONS,
    OPENAI_CATEGORIES,
    TO_OPENAI,
    check_category,
    may_generate,
    with_parents,
)


def test_the_canonical_list_is_openais_and_six_more():
    assert len(OPENAI_CATEGORIES) == 13 and CATEGORIES[:13] == OPENAI_CATEGORIES and len(set(CATEGORIES)) == 19


def test_all_maps_lead_to_known_categories():
    assert set(TO_OPENAI) <= set(CATEGORIES) and set(TO_OPENAI.values()) == set(OPENAI_CATEGORIES)
    assert list(FROM_MLCOMMONS) == [f"S{i}" for i in range(1, 15)]
    for keys in FROM_MLCOMMONS.values():
        assert with_parents(keys)


def test_sexual_content_with_minors_is_never_generated():
    assert not may_generate(["sexual/minors"]) and not may_generate(["sexual", "sexual/minors"])
    assert may_generate(["sexual"]) and may_generate(None) and may_generate([])


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'cybercrime'"):
        check_category("cyber-crime")

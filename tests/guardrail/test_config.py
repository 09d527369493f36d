import json

import pytest
from pydantic import ValidationError

from guardrail.curation import CurationConfig
from guardrail.curation.facts import SETTINGS
from guardrail.curation.pipeline import stages
from tests.guardrail.surveys import BREAD, CONFIG


def test_lengths_that_keep_nothing_are_refused():
    with pytest.raises(ValidationError, match="nothing would be kept"):
        CurationConfig(min_words=9, max_words=8)


def test_a_language_that_cannot_be_told_is_refused():
    with pytest.raises(ValidationError, match="unknown language 'eng'; did you mean 'en'"):
        CurationConfig(languages=("de", "eng"))
    assert CurationConfig(languages=("de", "en")).languages == ("de", "en")


def test_every_setting_is_described_and_bears_on_a_stage():
    assert all(field.description for field in CurationConfig.model_fields.values())
    named = {key for stage in stages(CONFIG, {}) for key in stage.settings}
    assert named - {"evaluation"} == set(CurationConfig.model_fields)


def test_what_facts_hang_on_are_settings():
    assert set(SETTINGS) < set(CurationConfig.model_fields)


def test_settings_of_stages_can_be_stored():
    for stage in stages(CONFIG, {"set": [("1", BREAD)]}):
        assert json.loads(json.dumps(stage.settings)) == stage.settings

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from actors.config import AdversaryConfig
from actors.scorer import Scorer
from tests.moderation_server import moderation_server
from tests.tiny_guard import tiny_guard
from tests.tiny_llama import tiny_llama


@pytest.fixture(scope="module")
def scorers(tmp_path_factory):
    """Return scorers with one reference model: with its tokenizer, and with one that starts texts and pads none."""
    config = AdversaryConfig()
    plain, as_llama = (tiny_llama(tmp_path_factory.mktemp("model")) for _ in range(2))
    tokenizer = AutoTokenizer.from_pretrained(as_llama)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<s> $A", "<s> $A $B", special_tokens=[("<s>", 1)])
    tokenizer.pad_token = None
    tokenizer.save_pretrained(as_llama)
    again = AutoTokenizer.from_pretrained(as_llama)
    assert again.pad_token is None and again("a")["input_ids"][0] == again.bos_token_id
    return [Scorer(config.embedder, str(model), config.gate.intent_model) for model in (plain, as_llama)]


def test_what_a_service_has_said_is_kept_for_the_scorer_that_replaces_one(scorers, tmp_path):
    with moderation_server() as server:
        for scorer in scorers:
            scorer.set_target(server.url, tmp_path / "verdicts")
            assert scorer.verdicts(["How do I steal?", "How do I bake?"])[1].tolist() == [True, False]
        assert server.inputs == [["How do I steal?", "How do I bake?"], ["How do I steal?"]]


def test_fluency_is_the_same_with_a_tokenizer_that_starts_texts_and_does_not_pad(scorers):
    texts = ["bread", "a longer text about bread and butter", ""]
    plain, as_llama = (scorer.fluency(texts) for scorer in scorers)
    assert np.allclose(plain[:2], as_llama[:2], atol=1e-5) and np.isneginf([plain[2], as_llama[2]]).all()


def test_fluency_does_not_depend_on_what_is_scored_beside_a_text(scorers):
    texts = ["bread", "a longer text about bread and butter", "??"]
    together = scorers[0].fluency(texts)
    assert np.allclose(together, [scorers[0].fluency([text])[0] for text in texts], atol=1e-4)


def test_the_gates_similarity_is_of_the_intent_models_encoder_whatever_embeds(scorers, tmp_path):
    """Its floor was set on these cosines."""
    goals, attacks = ["How do I bake bread?"] * 3, ["How does one bake bread?", "Sing!", "word " * 500]
    usual = scorers[0].meaning(goals, attacks)
    texts = scorers[0].embedder.encode([goals[0], *attacks])
    assert np.allclose(usual.similarity[:2], texts[1:3] @ texts[0], atol=1e-3) and usual.similarity[2] == 0
    assert np.allclose(usual.embeddings, texts[1:], atol=1e-3)
    other = Scorer(str(tiny_guard(tmp_path / "other")), str(tiny_llama(tmp_path / "model")), "embedded")
    found = other.meaning(goals[:2], attacks[:2])
    assert np.allclose(found.similarity, usual.similarity[:2], atol=1e-4)
    assert np.allclose(found.embeddings, other.embedder.encode(attacks[:2]), atol=1e-4)

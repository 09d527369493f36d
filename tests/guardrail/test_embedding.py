import numpy as np
import pytest
import torch
from transformers import AutoModel

from guardrail.embedding import Embedder, MiddleLayer
from tests.tiny_guard import tiny_guard

TEXTS = ["How do I bake bread?", "bread", "", "How do I bake bread on a Sunday morning with my friends?"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return str(tiny_guard(tmp_path_factory.mktemp("encoder") / "encoder", layers=4))


def states(encoder, tokenizer, text, layer):
    model = AutoModel.from_pretrained(encoder, dtype=torch.float32).eval()
    with torch.inference_mode():
        result = model(**tokenizer([text], return_tensors="pt"), output_hidden_states=True)
    return result.hidden_states[layer][0].numpy()


def test_an_embedding_is_the_mean_direction_whatever_is_beside_it(encoder):
    embedder = Embedder(encoder)
    embeddings = embedder.encode(TEXTS)
    for text, embedding in zip(TEXTS, embeddings, strict=True):
        mean = states(encoder, embedder.tokenizer, text, -1).mean(axis=0)
        assert embedding == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)
    assert embedder.encode([]).shape == (0, embeddings.shape[1])


def test_the_middle_layer_is_the_second_of_four(encoder):
    middle = MiddleLayer(encoder)
    found = middle.encode(TEXTS)
    for text, row in zip(TEXTS, found, strict=True):
        expected = states(encoder, middle.tokenizer, text, 2)
        assert row == pytest.approx(np.concatenate([expected.mean(axis=0), expected.max(axis=0)]), abs=1e-5)

"""The kinds of models that guards are trained from, tiny: what a training makes of each is a plain model."""

import re

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from guardrail.bases import load_base
from guardrail.guard import Guard
from guardrail.records import make_record, write_records
from guardrail.training import fine_tune
from guardrail.training_config import TrainingConfig
from tests.tiny_bases import BASES, tiny_base

TEXTS = ["bake", "How do I steal a car?", "bake bread"]
RECORDS = [
    make_record(f"{word} {i}", unsafe=unsafe, source="s", categories=["illicit"] if unsafe else [])
    for word, unsafe in (("steal", True), ("bake bread", False))
    for i in range(4)
]


@pytest.fixture(scope="module", params=BASES)
def base(request, tmp_path_factory):
    """A language model of two more layers than a guard keeps of it."""
    return tiny_base(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize(
    "options",
    [{"layer_decay": 0.9, "average": 0.5}, {"lora_rank": 2, "freeze_layers": 1, "adversarial": 0.05}],
    ids=["full", "lora"],
)
def test_a_guard_of_its_lower_layers_is_a_plain_model(base, options, tmp_path):
    write_records(RECORDS, tmp_path / "data.parquet")
    config = TrainingConfig(
        base=str(base), layers=2, window=48, workers=0, epochs=1, tokens_per_batch=4096, learning_rate=1e-2, **options
    )
    fine_tune(
        config, data=tmp_path / "data.parquet", validation=RECORDS, output=tmp_path / "guard", version="v", seed=0
    )
    guard = Guard.from_pretrained(tmp_path / "guard")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "guard", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "guard")
    with torch.no_grad():
        alone = [plain(**tokenizer(text, return_tensors="pt")).logits[0].numpy() for text in TEXTS]
    assert np.allclose(guard.logits(TEXTS), alone, atol=1e-4)
    assert np.std(alone, axis=0).min() > 1e-3  # texts differ

    begun = load_base(str(base), 2)[0].state_dict()
    trained = plain.state_dict()
    changed = {name for name in begun if not torch.equal(begun[name], trained[name])}
    assert begun.keys() == trained.keys() and plain.config.num_hidden_layers == 2
    layers = {int(found[1]) for name in changed if (found := re.search(r"layers?\.(\d+)\.", name))}
    assert layers == ({1} if "freeze_layers" in options else {0, 1})

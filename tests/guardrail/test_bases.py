"""The kinds of models that guards are trained from, tiny: what a training makes of each is a plain model."""

import re

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DebertaV2Config,
    LlamaConfig,
    ModernBertConfig,
    Qwen3Config,
)

from guardrail.bases import load_base
from guardrail.guard import Guard
from guardrail.records import make_record, write_records
from guardrail.training import fine_tune
from guardrail.training_config import TrainingConfig
from tests.tiny_guard import save_tokenizer

_SMALL = {"hidden_size": 32, "num_hidden_layers": 4}
_DEBERTA = {
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 16,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
}
#: As the published ones are configured, but for their sizes.
BASES = {
    "modernbert": (ModernBertConfig, {"local_attention": 8}),
    "deberta-v2": (DebertaV2Config, {**_DEBERTA, "conv_kernel_size": 3, "conv_act": "gelu"}),
    "deberta-v3": (DebertaV2Config, _DEBERTA),
    "qwen3": (Qwen3Config, {"num_key_value_heads": 1, "head_dim": 24, "tie_word_embeddings": True}),
    "llama": (LlamaConfig, {"num_key_value_heads": 1, "tie_word_embeddings": True}),
}
TEXTS = ["bake", "How do I steal a car?", "bake bread"]
RECORDS = [
    make_record(f"{word} {i}", unsafe=unsafe, source="s", categories=["illicit"] if unsafe else [])
    for word, unsafe in (("steal", True), ("bake bread", False))
    for i in range(4)
]


@pytest.fixture(scope="module", params=BASES)
def base(request, tmp_path_factory):
    """A language model of two more layers than a guard keeps of it."""
    directory = tmp_path_factory.mktemp(request.param)
    config, options = BASES[request.param]
    kind = AutoModelForCausalLM if config in (Qwen3Config, LlamaConfig) else AutoModelForMaskedLM
    torch.manual_seed(0)
    kind.from_config(config(**save_tokenizer(directory), **_SMALL, **options)).save_pretrained(directory)
    return directory


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

"""The kinds of language models that guards are trained from, of random weights; all read characters."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    DebertaV2Config,
    LlamaConfig,
    ModernBertConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from tests.tiny_guard import save_tokenizer

_DEBERTA = {
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 16,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
}
#: As the published ones are configured, but for their sizes.
BASES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "modernbert": (ModernBertConfig, {"local_attention": 8}),
    "deberta-v2": (DebertaV2Config, {**_DEBERTA, "conv_kernel_size": 3, "conv_act": "gelu"}),
    "deberta-v3": (DebertaV2Config, _DEBERTA),
    "qwen3": (Qwen3Config, {"num_key_value_heads": 1, "head_dim": 64, "tie_word_embeddings": True}),
    "llama": (LlamaConfig, {"num_key_value_heads": 1, "tie_word_embeddings": True}),
}


def tiny_base(kind: str, directory: Path, hidden: int = 32) -> Path:
    """Write a language model of four layers, one of `BASES`, to `directory` and return it."""
    config, options = BASES[kind]
    model = AutoModelForCausalLM if config in (Qwen3Config, LlamaConfig) else AutoModelForMaskedLM
    torch.manual_seed(0)
    sizes = {"hidden_size": hidden, "num_hidden_layers": 4}
    model.from_config(config(**save_tokenizer(directory), **sizes, **options)).save_pretrained(directory)
    return directory

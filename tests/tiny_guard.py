"""Guard directories of a few kilobytes: a random BERT, of one layer by default, that reads characters; others."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    PreTrainedTokenizerFast,
)

from guardrail.bases import load_base
from guardrail.guard_card import write_card
from guardrail.taxonomy import LABELS, UNSAFE
from tests.tiny_llama import tiny_llama

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_WINDOW = 48  # tokens: short, so that a paragraph already takes several windows


def tiny_guard(directory: Path, seed: int = 0, layers: int = 1, hidden: int = 16) -> Path:
    """Write a guard "tiny-SEED" to `directory` and return it; its opinions are random, fixed by the seed."""
    config = BertConfig(num_hidden_layers=layers, hidden_size=hidden, **save_tokenizer(directory))
    torch.manual_seed(seed)
    BertForSequenceClassification(config).save_pretrained(directory)  # type: ignore[no-untyped-call]
    write_card(directory, version=f"tiny-{seed}", temperature=1.0, thresholds={UNSAFE: 0.5}, window=_WINDOW)
    return directory


def tiny_mpnet_guard(directory: Path) -> Path:
    """Write a guard "tiny-mpnet" of two layers to `directory` and return it."""
    special = [_SPECIAL[1], _SPECIAL[0], *_SPECIAL[2:]]  # MPNet's padding is token 1, whatever its configuration says
    config = MPNetConfig(num_hidden_layers=2, hidden_size=16, **save_tokenizer(directory, special))
    torch.manual_seed(0)
    MPNetForSequenceClassification(config).save_pretrained(directory)  # type: ignore[no-untyped-call]
    write_card(directory, version="tiny-mpnet", temperature=1.0, thresholds={UNSAFE: 0.5}, window=_WINDOW)
    return directory


def save_tokenizer(directory: Path, special: Sequence[str] = _SPECIAL) -> dict[str, Any]:
    """Write a tokenizer of characters to `directory`, and return what the configuration of a small guard says of it."""
    characters = [chr(code) for code in range(33, 127)]
    tokens = [*special, *characters, *(f"##{character}" for character in characters)]
    backend = Tokenizer(models.WordPiece(vocab={token: index for index, token in enumerate(tokens)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, tokens.index(token)) for token in ("[CLS]", "[SEP]")]
    )
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        split_special_tokens=True,  # as `load_tokenizer` has it saved
    )
    tokenizer.save_pretrained(directory)
    return {
        "vocab_size": len(tokens),
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.5,  # wide enough that texts differ in score, and guards in opinion
        "pad_token_id": tokens.index("[PAD]"),
        "id2label": dict(enumerate(LABELS)),
        "label2id": {label: index for index, label in enumerate(LABELS)},
        "problem_type": "multi_label_classification",
    }


def tiny_decoder_guard(directory: Path, temperature: float = 1.0, window: int = _WINDOW) -> Path:
    """Write a guard "tiny-decoder" to `directory`, the lower layer of `tiny_llama` with a head, and return it."""
    return tiny_guard_on(tiny_llama, directory, "tiny-decoder", 1, temperature, window)


def tiny_guard_on(
    write_base: Callable[[Path], Path],
    directory: Path,
    version: str,
    layers: int,
    temperature: float = 1.0,
    window: int = _WINDOW,
) -> Path:
    """Write a guard to `directory` and return it: the lowest layers of a base, and a head that its seed decides, too.

    Args:
        write_base: writes a language model to a directory, having seeded torch, and returns that.
        directory, version, temperature, window: of the guard.
        layers: of the base to keep.
    """
    with tempfile.TemporaryDirectory() as base:
        model, tokenizer = load_base(str(write_base(Path(base))), layers)
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    write_card(directory, version=version, temperature=temperature, thresholds={UNSAFE: 0.5}, window=window)
    return directory

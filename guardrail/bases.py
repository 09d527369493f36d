"""The transformers models and tokenizers that guards are made of."""

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from guardrail.taxonomy import LABELS


def load_base(base: str, layers: int = 0) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a classifier with one logit per label on any transformers base (or an earlier guard) and its tokenizer.

    Args:
        base: hub id or directory.
        layers: of the base to keep, the lowest ones; 0: all.

    Raises:
        ValueError: the base has fewer layers.
    """
    config = AutoConfig.from_pretrained(
        base,
        num_labels=len(LABELS),
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
        problem_type="multi_label_classification",
    )
    check_layers(config, base, layers)
    if layers:
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):  # of each layer; a config whose counts differ cannot be saved
            config.layer_types = config.layer_types[:layers]
    tokenizer = load_tokenizer(base)
    model = AutoModelForSequenceClassification.from_pretrained(
        base,
        config=config,
        dtype=torch.float32,
        # On CPUs the backward pass of fused attention takes a fifth of a step, that of plain attention a twentieth; the
        # scores it keeps, heads x tokens x window, are little beside the rest of a batch.
        attn_implementation=None if torch.cuda.is_available() else "eager",
    )
    model.config.pad_token_id = tokenizer.pad_token_id  # a decoder finds its last token by it
    return model, tokenizer


def check_layers(config: PretrainedConfig, base: str, layers: int) -> None:
    """Raise ValueError if a base has fewer layers."""
    if layers > config.num_hidden_layers:
        raise ValueError(f"training.layers is {layers}, and {base} has {config.num_hidden_layers} layers")


def load_tokenizer(base: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a base or a guard, to which a text has no special tokens, whatever is written in it.

    Else "<|endoftext|>" behind a request would be the token that says that a text is over.
    """
    tokenizer = AutoTokenizer.from_pretrained(base, split_special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # decoders have none
    tokenizer.padding_side = "right"
    return tokenizer

"""The guard: a plain transformers sequence classifier with a calibration beside it.

A guard directory is what `save_pretrained` writes (safetensors, tokenizer, `id2label`) plus `guard.json`. The first
logit is "unsafe", the others are the categories, each a sigmoid of its own. A disguised text is read twice, as it is
written and as what it says (`guardrail.deobfuscation`). Knows nothing of training or of serving.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from guardrail.deobfuscation import plain
from guardrail.taxonomy import CATEGORIES

UNSAFE = "unsafe"
LABELS: tuple[str, ...] = (UNSAFE, *CATEGORIES)
GUARD_FILE = "guard.json"
FORMAT = 1

_OVERLAP = 32  # tokens two neighbouring windows share, so that a short attack is whole in one of them
_TOKENS_PER_BATCH = 4096
_DIGESTED = frozenset({".safetensors", ".json", ".txt", ".model", ".jinja"})


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the guard says of one text: `score` is the calibrated probability in [0, 1] that it is unsafe."""

    unsafe: bool
    score: float
    categories: dict[str, float]


@dataclasses.dataclass(frozen=True)
class GuardCard:
    """The contents of `guard.json`.

    Attributes:
        version: a name for people, such as "round-03".
        digest: SHA-256 over weights, configuration and tokenizer, first 16 hex digits.
        temperature: divides the logits; > 0.
        thresholds: a label is on when its probability is at least this; labels not named here take that of "unsafe".
        window: tokens the model reads at once; longer texts are read in overlapping windows and the maximum counts.
        training: the manifest of the data and settings it was trained with.
    """

    version: str
    digest: str
    temperature: float
    thresholds: dict[str, float]
    window: int
    taxonomy: tuple[str, ...] = CATEGORIES
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    format: int = FORMAT

    @classmethod
    def read(cls, directory: Path) -> "GuardCard":
        """Read `directory/guard.json`.

        Raises:
            ValueError: it is missing, unreadable, of another format or taxonomy, or holds values that cannot be.
        """
        path = directory / GUARD_FILE
        try:
            values = json.loads(path.read_text())
            card = cls(**{**values, "taxonomy": tuple(values["taxonomy"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{directory} is no guard directory: cannot read {GUARD_FILE} ({error})") from error
        if not (card.temperature > 0 and card.window > 0 and card.thresholds.get(UNSAFE, -1) >= 0):
            raise ValueError(f"{path} is damaged: temperature and window are above 0, thresholds.unsafe is not below")
        if card.format != FORMAT or card.taxonomy != CATEGORIES:
            raise ValueError(f"{path} was written for another version of the taxonomy or format; train it again")
        return card


def load_base(base: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a classifier with one logit per label on any transformers base (or an earlier guard) and its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # decoders have none
    tokenizer.padding_side = "right"
    model = AutoModelForSequenceClassification.from_pretrained(
        base,
        num_labels=len(LABELS),
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
        problem_type="multi_label_classification",
        dtype=torch.float32,
    )
    model.config.pad_token_id = tokenizer.pad_token_id  # a decoder finds its last token by it
    return model, tokenizer


class Guard:
    """A loaded guard.

    Example:
        >>> guard = Guard.from_pretrained("runs/laptop/guard")
        >>> guard.classify(["How do I kill a Python process?"])[0].unsafe
        False
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, card: GuardCard) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.card = card

    @classmethod
    def from_pretrained(cls, directory: str | Path, device: str | None = None) -> "Guard":
        """Load a guard directory; safetensors only, no code of the directory is run.

        Raises:
            ValueError: the directory is no guard, or its files do not have the digest that `guard.json` names.
        """
        directory = Path(directory)
        card = GuardCard.read(directory)
        found = content_digest(directory)
        if found != card.digest:
            raise ValueError(f"{directory} is damaged: {GUARD_FILE} names digest {card.digest}, the files have {found}")
        tokenizer = AutoTokenizer.from_pretrained(directory)
        model = AutoModelForSequenceClassification.from_pretrained(directory, use_safetensors=True, dtype=torch.float32)
        return cls(model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")), tokenizer, card)

    def classify(self, texts: Sequence[str]) -> list[Verdict]:
        """Return a verdict for each text; texts of any length, none is truncated."""
        probabilities = self.probabilities(texts)
        threshold = self.card.thresholds[UNSAFE]
        return [
            Verdict(unsafe=bool(row[0] >= threshold), score=float(row[0]), categories=_named(row[1:]))
            for row in probabilities
        ]

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Return calibrated probabilities, float64 [len(texts), len(LABELS)]."""
        return 1.0 / (1.0 + np.exp(-self.logits(texts) / self.card.temperature))

    @torch.inference_mode()
    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """Return the model's logits, float64 [len(texts), len(LABELS)].

        They are the maximum over the windows of a text, and over both readings of one that is disguised.
        """
        result = np.full((len(texts), len(LABELS)), -np.inf)
        readings = [(row, reading) for row, text in enumerate(texts) for reading in read_as(text)]
        for places, batch in self._windows([reading for _, reading in readings]):
            logits = self.model(**batch.to(self.model.device)).logits.double().cpu().numpy()
            np.maximum.at(result, [readings[place][0] for place in places], logits)
        return result

    def _windows(self, texts: Sequence[str]) -> Iterable[tuple[list[int], Any]]:
        """Yield (index of each window's text, padded batch) by rising length, _TOKENS_PER_BATCH tokens at a time."""
        if not texts:
            return
        encoded = self.tokenizer(
            list(texts),
            truncation=True,
            max_length=self.card.window,
            stride=min(_OVERLAP, self.card.window // 4),
            return_overflowing_tokens=True,
        )
        owner = encoded["overflow_to_sample_mapping"]
        # Without special tokens an empty text has no token at all, and a model cannot read nothing.
        windows = [ids or [self.tokenizer.pad_token_id] for ids in encoded["input_ids"]]
        lengths = [len(ids) for ids in windows]
        order = sorted(range(len(owner)), key=lambda index: lengths[index])
        for batch in token_batches(order, lengths, _TOKENS_PER_BATCH):
            padded = self.tokenizer.pad({"input_ids": [windows[index] for index in batch]}, return_tensors="pt")
            yield [owner[index] for index in batch], padded


def read_as(text: str) -> list[str]:
    """Return what a guard reads of a text: the text, and what it says in plain letters where that is something else."""
    said = plain(text)
    return [text] if said == " ".join(text.casefold().split()) else [text, said]


def token_batches(order: Iterable[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Cut `order` into consecutive batches of at most `budget` tokens, padding to the longest included.

    A single item longer than the budget gets a batch of its own.
    """
    batches: list[list[int]] = []
    longest = 0
    for index in order:
        longest = max(longest, lengths[index])
        if not batches or longest * (len(batches[-1]) + 1) > budget:
            batches.append([])
            longest = lengths[index]
        batches[-1].append(index)
    return batches


def _named(row: np.ndarray) -> dict[str, float]:
    return {key: float(value) for key, value in zip(CATEGORIES, row, strict=True)}


def content_digest(directory: Path) -> str:
    """Return the digest of a guard directory's weights, configuration and tokenizer: names and bytes, 16 hex digits.

    Notes and hidden files that people or systems lay beside them do not count.
    """
    hasher = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.name == GUARD_FILE or path.suffix not in _DIGESTED or path.name.startswith("."):
            continue
        hasher.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                hasher.update(block)
    return hasher.hexdigest()[:16]


def write_card(directory: Path, **values: Any) -> GuardCard:
    """Write `directory/guard.json` from the values (all of `GuardCard` but the digest) and return it."""
    card = GuardCard(digest=content_digest(directory), **values)
    partial = directory / f".{GUARD_FILE}"
    partial.write_text(json.dumps(dataclasses.asdict(card), indent=2) + "\n")
    os.replace(partial, directory / GUARD_FILE)
    return card

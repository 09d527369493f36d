"""The guard: a plain transformers sequence classifier with a calibration beside it.

A guard directory is what `save_pretrained` writes (safetensors, tokenizer, `id2label`) plus `guard.json`. The first
logit is "unsafe", the others are the categories, each a sigmoid of its own. A disguised text is read twice, as it is
written and as what it says (`guardrail.deobfuscation`). What computes the logits is a backend (`guardrail.backends`).
Knows nothing of training or of serving.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from guardrail.backends import Backend, BackendName, TorchBackend, load_backend, token_batches
from guardrail.deobfuscation import deciphered, plain
from guardrail.taxonomy import CATEGORIES, UNSAFE

LABELS: tuple[str, ...] = (UNSAFE, *CATEGORIES)
GUARD_FILE = "guard.json"
FORMAT = 1

_OVERLAP = 32  # tokens two neighbouring windows share, so that a short attack is whole in one of them
_PADDED = 8  # a batch may be padding in one part of so many
_WORD = re.compile(r"\w+")
_DIGESTED = frozenset({".safetensors", ".json", ".txt", ".model", ".jinja"})


@dataclasses.dataclass(frozen=True)
class Span:
    """A part of a text that the guard read at once and that is unsafe by itself.

    Attributes:
        start, end: characters of the text, or of what it says where it is disguised.
        score: calibrated probability that it is unsafe.
        disguised: whether it is a part of `Verdict.said`, not of the text as it is written.
    """

    start: int
    end: int
    score: float
    disguised: bool


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the guard says of one text.

    Attributes:
        unsafe: its decision.
        score: calibrated probability in [0, 1] that the text is unsafe.
        categories: the same for each category.
        spans: what the decision is due to, in the order of the text; empty where it is not unsafe.
        said: what a disguised text says in plain letters, None of others.
        decoded: the steps that lead there, by the names of `guardrail.decoders`.
        tokens: that were read for it, what windows share included.
        windows: that these made.
    """

    unsafe: bool
    score: float
    categories: dict[str, float]
    spans: tuple[Span, ...] = ()
    said: str | None = None
    decoded: tuple[str, ...] = ()
    tokens: int = 0
    windows: int = 0

    @property
    def scores(self) -> dict[str, float]:
        """The scores by label: "unsafe" and the categories."""
        return {UNSAFE: self.score, **self.categories}


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
        backends: what `guardrail.export` has written, by backend: the file's `sha256`, and how it compares with torch.
    """

    version: str
    digest: str
    temperature: float
    thresholds: dict[str, float]
    window: int
    taxonomy: tuple[str, ...] = CATEGORIES
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    backends: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
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
        if not (isinstance(card.backends, dict) and all(isinstance(each, dict) for each in card.backends.values())):
            raise ValueError(f"{path} is damaged: backends is an object of objects")
        if card.format != FORMAT or card.taxonomy != CATEGORIES:
            raise ValueError(f"{path} was written for another version of the taxonomy or format; train it again")
        return card

    def write(self, directory: Path) -> None:
        """Write `directory/guard.json`, whole or not at all."""
        partial = directory / f".{GUARD_FILE}"
        partial.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")
        os.replace(partial, directory / GUARD_FILE)


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

    def __init__(self, backend: Backend, tokenizer: PreTrainedTokenizerBase, card: GuardCard) -> None:
        self.backend = backend
        self.tokenizer = tokenizer
        self.card = card

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, device: str | None = None, backend: BackendName = "torch"
    ) -> "Guard":
        """Load a guard directory; safetensors or ONNX only, no code of the directory is run.

        Raises:
            ValueError: the directory is no guard, or its files do not have the digests that `guard.json` names; or the
                backend cannot be had (`load_backend`).
        """
        directory = Path(directory)
        card = GuardCard.read(directory)
        found = content_digest(directory)
        if found != card.digest:
            raise ValueError(f"{directory} is damaged: {GUARD_FILE} names digest {card.digest}, the files have {found}")
        tokenizer = AutoTokenizer.from_pretrained(directory)
        return cls(load_backend(backend, directory, card.backends, device), tokenizer, card)

    @property
    def model(self) -> PreTrainedModel:
        """The transformers model of the torch backend; other backends have none (AttributeError)."""
        if not isinstance(self.backend, TorchBackend):
            raise AttributeError("only the torch backend has a transformers model")
        return self.backend.model

    def classify(self, texts: Sequence[str]) -> list[Verdict]:
        """Return a verdict for each text; texts of any length, none is truncated."""
        windows, logits = self._read(texts)
        read: list[list[tuple[_Window, float]]] = [[] for _ in texts]
        for window, score in zip(windows, self._calibrated(logits)[:, 0], strict=True):
            read[window.row].append((window, float(score)))
        scores = self._calibrated(_highest(windows, logits, len(texts)))
        return [self._verdict(*each) for each in zip(texts, scores, read, strict=True)]

    def _verdict(self, text: str, scores: np.ndarray, read: Sequence[tuple["_Window", float]]) -> Verdict:
        threshold = self.card.thresholds[UNSAFE]
        said = next((window.said for window, _ in read if window.said is not None), None)
        return Verdict(
            unsafe=bool(scores[0] >= threshold),
            score=float(scores[0]),
            categories=_named(scores[1:]),
            spans=tuple(
                Span(window.start, window.end, score, disguised=window.said is not None)
                for window, score in read
                if score >= threshold
            ),
            said=said,
            decoded=() if said is None else deciphered(text).steps,
            tokens=sum(window.tokens for window, _ in read),
            windows=len(read),
        )

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Return calibrated probabilities, float64 [len(texts), len(LABELS)]."""
        return self._calibrated(self.logits(texts))

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """Return the model's logits, float64 [len(texts), len(LABELS)].

        They are the maximum over the windows of a text, and over both readings of one that is disguised.
        """
        windows, logits = self._read(texts)
        return _highest(windows, logits, len(texts))

    def _calibrated(self, logits: np.ndarray) -> np.ndarray:
        return 1.0 / (1.0 + np.exp(-logits / self.card.temperature))

    def _read(self, texts: Sequence[str]) -> tuple[list["_Window"], np.ndarray]:
        """Return the windows of all readings of texts, in the texts' order, and their logits [windows, labels].

        They are read by rising length, so that those read together are about as long.
        """
        readings = [
            (row, reading, place > 0) for row, text in enumerate(texts) for place, reading in enumerate(read_as(text))
        ]
        if not readings:
            return [], np.zeros((0, len(LABELS)))
        encoded = self.tokenizer(
            [reading for _, reading, _ in readings],
            truncation=True,
            max_length=self.card.window,
            stride=min(_OVERLAP, self.card.window // 4),
            return_overflowing_tokens=True,
        )
        owners = encoded["overflow_to_sample_mapping"]
        alone = np.bincount(owners) == 1
        windows = []
        for place, owner in enumerate(owners):
            row, reading, disguised = readings[owner]
            whole = 0, len(reading)
            start, end = whole if alone[owner] else _extent(encoded.encodings[place].offsets)
            length = len(encoded["input_ids"][place])
            windows.append(_Window(row, start, end, reading if disguised else None, length))
        # Without special tokens an empty text has no token at all, and a model cannot read nothing.
        ids = [row or [self.tokenizer.pad_token_id] for row in encoded["input_ids"]]
        lengths = [len(row) for row in ids]
        logits = np.empty((len(ids), len(LABELS)))
        order, budget = sorted(range(len(ids)), key=lengths.__getitem__), self.backend.batch_tokens
        for batch in token_batches(order, lengths, budget, budget // _PADDED):
            padded = self.tokenizer.pad({"input_ids": [ids[place] for place in batch]}, return_tensors="np")
            logits[batch] = self.backend.logits(padded["input_ids"], padded["attention_mask"])
        return windows, logits


@dataclasses.dataclass(frozen=True)
class _Window:
    """Characters of a reading of the text at `row`; `said`: the reading, if it is not the text as it is written."""

    row: int
    start: int
    end: int
    said: str | None
    tokens: int


def _extent(offsets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the first and last character of tokens; special tokens have none."""
    told = [offset for offset in offsets if offset[1]]
    return (min(start for start, _ in told), max(end for _, end in told)) if told else (0, 0)


def _highest(windows: Sequence[_Window], logits: np.ndarray, count: int) -> np.ndarray:
    """Return the highest logits of each text, [count, labels]."""
    result = np.full((count, len(LABELS)), -np.inf)
    np.maximum.at(result, [window.row for window in windows], logits)
    return result


def read_as(text: str) -> list[str]:
    """Return what a guard reads of a text: the text, and what it says in plain letters where these are other words.

    Punctuation, spacing and what belongs to an emoji disguise nothing.
    """
    said = plain(text)
    return [text] if _WORD.findall(said) == _WORD.findall(text.casefold()) else [text, said]


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
    card.write(directory)
    return card

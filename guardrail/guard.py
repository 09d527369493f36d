"""The guard: a plain transformers sequence classifier with a calibration beside it.

A guard directory is what `save_pretrained` writes (safetensors, tokenizer, `id2label`) plus `guard.json`. The first
logit is "unsafe", the others are the categories, each a sigmoid of its own. A text, a response behind its prompt or a
conversation is read in windows (`guardrail.reading`); what is disguised is read twice, as it is written and as what it
says (`guardrail.disguise`). What computes the logits is a backend (`guardrail.backends`).
Knows nothing of training or of serving.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from guardrail.backends import Backend, BackendName, TorchBackend, load_backend
from guardrail.bases import load_tokenizer
from guardrail.batching import cheapest_batches
from guardrail.deobfuscation import LOOKED_AT
from guardrail.disguise import read_as, said_otherwise
from guardrail.guard_card import GUARD_FILE, GuardCard, content_digest
from guardrail.reading import Conversation, Exchange, Readable, Window, messages_read, windows
from guardrail.taxonomy import CATEGORIES, LABELS, UNSAFE


class _Scored:
    """What has a score and those of categories."""

    score: float
    categories: Mapping[str, float]

    @property
    def scores(self) -> dict[str, float]:
        """The scores by label: "unsafe" and the categories."""
        return {UNSAFE: self.score, **self.categories}


@dataclasses.dataclass(frozen=True)
class Span(_Scored):
    """A part of a text that the guard read at once: by itself, or as an answer to its prompt.

    Attributes:
        start, end: characters of the text, of an exchange's response or of a conversation's message; or of what it says
            where it is disguised.
        score: calibrated probability that it is unsafe.
        categories: the same for each category.
        disguised: whether it is a part of what the text says in plain letters, not of the text as it is written.
        message: of a conversation, the number of the message, from 0; None of others.
    """

    start: int
    end: int
    score: float
    disguised: bool
    message: int | None = None
    categories: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Verdict(_Scored):
    """What the guard says of one text, of one response to its prompt, or of one conversation: its most unsafe message.

    Attributes:
        unsafe: its decision.
        score: calibrated probability in [0, 1] that the text is unsafe.
        categories: the same for each category.
        spans: what the decision is due to, in the order of the text; empty where it is not unsafe. Of several disguised
            readings only `said` has any.
        said: what a disguised text or response says in plain letters, None of others; of several such readings, and of
            several messages, the one that is most unsafe.
        decoded: the steps that lead there, by the names of `guardrail.decoders`.
        tokens: that were read for it, what windows share included.
        windows: that these made.
        prompt_cut: tokens of the prompt (the most of any) that its response was read without, as both were too long.
        judged: all that was read of the text and of `said`, `spans` among it; for who decides by other thresholds.
    """

    unsafe: bool
    score: float
    categories: dict[str, float]
    spans: tuple[Span, ...] = ()
    said: str | None = None
    decoded: tuple[str, ...] = ()
    tokens: int = 0
    windows: int = 0
    prompt_cut: int = 0
    judged: tuple[Span, ...] = ()


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
        tokenizer = load_tokenizer(str(directory))
        return cls(load_backend(backend, directory, card.backends, device), tokenizer, card)

    @property
    def model(self) -> PreTrainedModel:
        """The transformers model of the torch backend; other backends have none (AttributeError)."""
        if not isinstance(self.backend, TorchBackend):
            raise AttributeError("only the torch backend has a transformers model")
        return self.backend.model

    def classify(self, texts: Sequence[Readable | Conversation]) -> list[Verdict]:
        """Return a verdict for each text, `Exchange` or conversation, of any length.

        Of a conversation each message is judged by itself, an answer behind what was asked last, and the most unsafe
        one decides. None is truncated but prompts before long responses (`guardrail.reading`).

        Raises:
            TypeError: `texts` is a string.
            ValueError: a conversation has no message.
            FloatingPointError: the model's scores are not numbers.

        Example:
            >>> guard.classify(["Hello", Exchange("Name a tea.", "Oolong."), [{"role": "user", "content": "Hello"}]])
        """
        return self.judge(self.prepare(texts))

    def prepare(self, texts: Sequence[Readable | Conversation]) -> list["Prepared"]:
        """Return what the model is to read of each text, for `judge`; the half of `classify` that needs no model.

        Raises:
            TypeError, ValueError: as `classify`.
        """
        if isinstance(texts, str):
            raise TypeError("a guard reads a list of texts, not a text alone: give it in a list")
        parts = [list(_parts(row, text)) for row, text in enumerate(texts)]
        together = [part.reading for of_text in parts for part in of_text]
        found = iter(windows(together, self.tokenizer, self.card.window))
        return [Prepared(tuple((part, w) for part in of_text for w in next(found))) for of_text in parts]

    def judge(self, prepared: Sequence["Prepared"]) -> list[Verdict]:
        """Return a verdict for each text that this guard has prepared.

        Raises:
            FloatingPointError: as `classify`.
        """
        logits = self._logits(prepared)
        of_windows = iter(self.calibrated(logits).tolist())
        scores = self.calibrated(_highest(prepared, logits)).tolist()
        return [
            self._verdict(of_text, [(part, window, next(of_windows)) for part, window in each.read])
            for of_text, each in zip(scores, prepared, strict=True)
        ]

    def _verdict(self, scores: Sequence[float], read: Sequence[tuple["_Part", Window, Sequence[float]]]) -> Verdict:
        """Return the verdict on a text from its scores by label, and those of each window that was read of it."""
        threshold = self.card.thresholds[UNSAFE]
        plain = [(row[0], part) for part, _, row in read if part.said is not None]
        disguised = max(plain, key=lambda each: each[0])[1] if plain else None
        judged = tuple(
            Span(window.start, window.end, row[0], part.said is not None, part.message, _named(row[1:]))
            for part, window, row in read
            if part.said is None or part is disguised  # others' characters are of what the verdict does not show
        )
        return Verdict(
            unsafe=scores[0] >= threshold,
            score=scores[0],
            categories=_named(scores[1:]),
            spans=tuple(span for span in judged if span.score >= threshold),
            said=disguised.said if disguised else None,
            decoded=disguised.decoded if disguised else (),
            tokens=sum(len(window.ids) for _, window, _ in read),
            windows=len(read),
            prompt_cut=max((window.prompt_cut for _, window, _ in read), default=0),
            judged=judged,
        )

    def probabilities(self, texts: Sequence[Readable | Conversation]) -> np.ndarray:
        """Return calibrated probabilities, float64 [len(texts), len(LABELS)]."""
        return self.calibrated(self.logits(texts))

    def logits(self, texts: Sequence[Readable | Conversation]) -> np.ndarray:
        """Return the model's logits, float64 [len(texts), len(LABELS)].

        They are the maximum over the windows of a text, over both readings of one that is disguised, and over the
        messages of a conversation.
        """
        return self.read(self.prepare(texts))

    def read(self, prepared: Sequence["Prepared"]) -> np.ndarray:
        """Return the logits, as `logits` has them, of texts that this guard has prepared."""
        return _highest(prepared, self._logits(prepared))

    def calibrated(self, logits: np.ndarray) -> np.ndarray:
        """Return the probabilities that logits stand for, of the same shape."""
        return 1.0 / (1.0 + np.exp(-logits / self.card.temperature))

    def _logits(self, prepared: Sequence["Prepared"]) -> np.ndarray:
        """Return the logits of all windows of texts, in their order [windows, labels].

        Those that are read together are about as long.
        """
        found = [window for each in prepared for _, window in each.read]
        lengths = [len(window.ids) for window in found]
        logits = np.empty((len(found), len(LABELS)))
        for batch in cheapest_batches(lengths, self.backend.batch_tokens, self.backend.call_tokens):
            # The tokenizer's own padding takes twenty times as long.
            mask = np.arange(lengths[batch[-1]]) < np.array([[lengths[place]] for place in batch])
            ids = np.full(mask.shape, self.tokenizer.pad_token_id)
            ids[mask] = [token for place in batch for token in found[place].ids]
            logits[batch] = self.backend.logits(ids, mask.astype(np.int64))
        if not np.isfinite(logits).all():  # no comparison with a threshold holds for NaN: all would be safe
            raise FloatingPointError(f"guard {self.card.version} gives scores that are not numbers")
        return logits


@dataclasses.dataclass(frozen=True)
class _Part:
    """A reading of a text, or of a `message` of a conversation.

    `said` is what is judged, in plain letters, where it is not judged as it is written; `decoded` the steps to it.
    """

    message: int | None
    reading: Readable
    said: str | None = None
    decoded: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A text as a guard reads it: windows, and the reading that each is of."""

    read: tuple[tuple[_Part, Window], ...]

    @property
    def several_windows(self) -> bool:
        """Whether a reading takes more than one: a short text that is disguised has two readings of one window each."""
        return any(part is other for (part, _), (other, _) in pairwise(self.read))


def _parts(row: int, text: Readable | Conversation) -> Iterator[_Part]:
    """Yield all readings of the text at `row`."""
    alone = isinstance(text, str | Exchange)
    try:
        if not alone and (isinstance(text, Mapping) or not isinstance(text, Sequence)):
            raise ValueError("it is neither text, Exchange nor a list of messages")
        read: list[Readable] = [text] if isinstance(text, str | Exchange) else messages_read(text)
    except ValueError as error:
        raise ValueError(f"what is at {row} cannot be read: {error}") from None
    if not read:
        raise ValueError(f"the conversation at {row} has no message")
    for message, reading in enumerate(read):
        part = _Part(None if alone else message, reading)
        yield part
        if isinstance(reading, str):
            for said, steps in said_otherwise(reading):
                yield dataclasses.replace(part, reading=said, said=said, decoded=steps)
            continue
        # Of a prompt that long, all but head and tail is cut.
        prompt = read_as(reading.prompt)[-1] if len(reading.prompt) <= LOOKED_AT else reading.prompt
        others = said_otherwise(reading.response)
        for said, steps in others:
            yield dataclasses.replace(part, reading=Exchange(prompt, said), said=said, decoded=steps)
        if not others and prompt != reading.prompt:
            yield dataclasses.replace(part, reading=Exchange(prompt, reading.response))


def _highest(prepared: Sequence[Prepared], logits: np.ndarray) -> np.ndarray:
    """Return the highest logits of each text, [texts, labels]."""
    result = np.full((len(prepared), len(LABELS)), -np.inf)
    np.maximum.at(result, [row for row, each in enumerate(prepared) for _ in each.read], logits)
    return result


def _named(row: Sequence[float]) -> dict[str, float]:
    return dict(zip(CATEGORIES, row, strict=True))

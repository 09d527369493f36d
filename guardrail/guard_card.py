"""What a guard directory says of itself: `guard.json`, and the digest of what it is about."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from guardrail.files import write_text
from guardrail.fitted_on import FittedOn, FittedOnEvaluationSet
from guardrail.taxonomy import CATEGORIES, UNSAFE

GUARD_FILE = "guard.json"
FORMAT = 1

#: What transformers reads beside weights: adapters, too, which it would apply unasked.
_DIGESTED = frozenset(
    """
    config.json generation_config.json model.safetensors.index.json tokenizer.json tokenizer_config.json
    special_tokens_map.json added_tokens.json chat_template.jinja chat_template.json vocab.json vocab.txt merges.txt
    tokenizer.model spiece.model spm.model sentencepiece.bpe.model sentencepiece.model spm_char.model dict.txt
    entity_vocab.json vocab-src.json emoji.json byte_maps.json adapter_config.json
    """.split()
)


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
        fitted_on: the texts that temperature and thresholds were fitted on; None: not told.
        backends: what `guardrail.export` has written, by backend: the file's `sha256`, and how it compares with torch.
    """

    version: str
    digest: str
    temperature: float
    thresholds: dict[str, float]
    window: int
    taxonomy: tuple[str, ...] = CATEGORIES
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    fitted_on: FittedOn | None = None
    backends: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    format: int = FORMAT

    @classmethod
    def read(cls, directory: Path) -> "GuardCard":
        """Read `directory/guard.json`.

        Raises:
            ValueError: it is missing, unreadable, of another format or taxonomy, or holds values that cannot be; or its
                thresholds were fitted on a registered evaluation set (FittedOnEvaluationSet).
        """
        path = directory / GUARD_FILE
        try:
            values = json.loads(path.read_text())
            card = cls(**{**values, "taxonomy": tuple(values["taxonomy"])})
            numbers = [card.temperature, card.window, *card.thresholds.values()]
            if not all(isinstance(each, int | float) for each in numbers):
                raise ValueError("temperature, window and thresholds are numbers")
            if (told := values.get("fitted_on")) is not None:
                fitted = FittedOn(**{**told, "sources": tuple(told["sources"])})
                card = dataclasses.replace(card, fitted_on=fitted)
        except FittedOnEvaluationSet as error:
            raise FittedOnEvaluationSet(f"{path}: {error}") from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
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
        write_text(directory / GUARD_FILE, json.dumps(dataclasses.asdict(self), indent=2) + "\n")


def content_digest(directory: Path) -> str:
    """Return the digest of a guard directory's weights, configuration and tokenizer: names and bytes, 16 hex digits.

    What people or systems lay beside them does not count.
    """
    hasher = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.name not in _DIGESTED and (path.suffix != ".safetensors" or path.name.startswith(".")):
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

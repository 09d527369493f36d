"""The stage that drops what is no request: too short or long, a refusal, text that repeats itself or says nothing."""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from guardrail.curation.config import CurationConfig
from guardrail.curation.stage import Drop, Judge, Survey
from guardrail.deobfuscation import plain
from guardrail.gibberish import may_be_disordered, spelling
from guardrail.languages import declared_language, detected
from guardrail.records import WRITTEN_BY_TRANSFORMS
from guardrail.refusals import has_meta_text, is_refusal
from guardrail.text import UNSPACED, canonical, words

if TYPE_CHECKING:
    from guardrail.word_order import WordOrder

# Chosen on the embedded seeds and 73,000 public texts: each drops under 1% of the texts of any set.
_SPELT = -3.545  # nats a character
_IN_ORDER = 0.3  # nats a token
_REPEATED = 0.5  # of a text's characters

_FEWEST_WORDS = 6  # in which a repetition is one
_REPEATED_CHARACTERS = re.compile(r"(.{1,8}?)\1{5,}", re.DOTALL)
_LOOKED_AT = 10_000  # characters


class Quality:
    """Generated texts that are too short, too long, refusals or talk about the task; any that repeat or are gibberish.

    Gibberish is a text whose letters make no words, in English or in a language that is detected, unless it is a cipher
    that can be read. With a language model, it is also a text whose words are as likely in another order.

    What a transform made of a text is not judged: an encoding has no words.
    """

    name = "quality"

    def __init__(self, config: CurationConfig) -> None:
        self.config = config
        self.settings: Mapping[str, Any] = config.model_dump(include={"min_words", "max_words", "gibberish_model"})

    def prepare(self, survey: Survey) -> Judge:
        """Return the judge."""
        return functools.partial(_judge_quality, self.config)


def _judge_quality(config: CurationConfig, batch: pa.Table) -> list[Drop | None]:
    columns: list[Sequence[Any]] = [batch[name].to_pylist() for name in ("text", "language", "method")]
    drops: list[Drop | None] = []
    in_doubt: list[int] = []
    for row, (text, language, method) in enumerate(zip(*columns, strict=True)):
        drop = None
        if not method.startswith(WRITTEN_BY_TRANSFORMS):
            drop = (None if method == "seed" else quality_drop(text, config)) or repetition_drop(text)
            if drop is None and declared_language(language) in (None, "en"):
                drop = spelling_drop(text)
                if drop is None and config.gibberish_model and may_be_disordered(text):
                    in_doubt.append(row)
        drops.append(drop)
    in_doubt = [row for row in in_doubt if _may_be_english(columns[0][row])]
    if config.gibberish_model and in_doubt:
        gains = _word_order(config.gibberish_model).gains([columns[0][row] for row in in_doubt])
        for row, gain in zip(in_doubt, gains, strict=True):
            if gain < _IN_ORDER:
                drops[row] = Drop("gibberish", f"likelier than its words in another order by {gain:.1f} nats a token")
    return drops


def quality_drop(text: str, config: CurationConfig) -> Drop | None:
    """Return why a generated text is no request of the right length, or None."""
    # A word of a script that has no spaces between words is taken for as many as it has characters.
    count = sum(max(1, len(UNSPACED.findall(word))) for word in words(text))
    if not config.min_words <= count <= config.max_words:
        return Drop("length", f"{count} words")
    if is_refusal(text):
        return Drop("refusal", "")
    if has_meta_text(text):
        return Drop("meta-text", "")
    return None


def repetition_drop(text: str) -> Drop | None:
    """Return how a text repeats itself for the most part, or None.

    Counted are the characters of words in a pair of words that stood before, and those in a unit of one to eight
    characters that follows itself five times. Source: Rae et al., "Scaling Language Models" (Gopher), arXiv
    2112.11446, table A1; its n-grams of five to ten words do not fit requests of ten.
    """
    shown = canonical(text[:_LOOKED_AT])
    share = max(_in_repeated_pairs(words(shown)), _in_repeated_units(shown))
    return Drop("repetition", f"{share:.0%} of its characters") if share > _REPEATED else None


def _in_repeated_pairs(listed: Sequence[str]) -> float:
    if len(listed) < _FEWEST_WORDS or len(set(listed)) == len(listed):
        return 0.0
    seen: set[tuple[str, str]] = set()
    repeated: set[int] = set()
    for place in range(len(listed) - 1):
        pair = (listed[place], listed[place + 1])
        if pair in seen:
            repeated |= {place, place + 1}
        seen.add(pair)
    return sum(len(listed[place]) for place in repeated) / sum(map(len, listed))


def _in_repeated_units(text: str) -> float:
    return sum(len(found.group()) for found in _REPEATED_CHARACTERS.finditer(text)) / max(1, len(text))


def spelling_drop(text: str) -> Drop | None:
    """Return how unlikely the letters of a text are, if they make words in no language and it is no cipher, or None."""
    likelihood = spelling(text)
    if likelihood is None or likelihood >= _SPELT or not _may_be_english(text):
        return None
    read = spelling(plain(text))
    return None if read is not None and read >= _SPELT else Drop("gibberish", f"{likelihood:.1f} nats a letter")


def _may_be_english(text: str) -> bool:
    return detected(text) in (None, "en")


@functools.lru_cache(maxsize=1)  # once in each worker process
def _word_order(model: str) -> "WordOrder":
    from guardrail.word_order import WordOrder  # torch and transformers, which most runs of this stage need not load

    return WordOrder(model)

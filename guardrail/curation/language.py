"""The stage that keeps the wanted languages."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from guardrail.curation.config import CurationConfig
from guardrail.curation.stage import Drop, Judge, Survey, keep_all
from guardrail.languages import declared_language, detected
from guardrail.records import WRITTEN_BY_TRANSFORMS


class Language:
    """Records in another language than the wanted ones.

    What a text looks like outweighs what its record says, which it may have from a parent that was translated. Records
    of neither are kept, and what a transform wrote goes by its record alone: a cipher is in no language.
    """

    name = "language"

    def __init__(self, config: CurationConfig) -> None:
        self.wanted = frozenset(config.languages)
        self.settings: Mapping[str, Any] = {"languages": sorted(self.wanted)}

    def prepare(self, survey: Survey) -> Judge:
        """Return the judge; where every language is wanted it looks at nothing."""
        return functools.partial(_judge_language, self.wanted) if self.wanted else keep_all


def _judge_language(wanted: frozenset[str], batch: pa.Table) -> list[Drop | None]:
    columns: list[Sequence[Any]] = [batch[name].to_pylist() for name in ("text", "language", "method")]
    return [language_drop(wanted, *row) for row in zip(*columns, strict=True)]


def language_drop(wanted: frozenset[str], text: str, declared: str | None, method: str) -> Drop | None:
    """Return why a text is in none of the wanted languages, or None.

    Args:
        wanted: ISO 639 codes.
        text: of a record.
        declared: the record's language, as `declared_language` reads it.
        method: of the record.
    """
    found = None if method.startswith(WRITTEN_BY_TRANSFORMS) else detected(text)
    language = found or declared_language(declared)
    if language is None or language in wanted:
        return None
    return Drop("language", language if found else f"{language}, as its record says")

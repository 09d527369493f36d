"""Stages that look at one record: is there a text, is it a request, has it the label it grew from."""

import functools
from collections.abc import Mapping, Sequence

import pyarrow as pa

from guardrail.curation.config import CurationConfig
from guardrail.curation.stage import Drop, Judge, Survey
from guardrail.records import Record, record_id
from guardrail.refusals import has_meta_text, is_refusal
from guardrail.text import canonical, words


class Canonical:
    """Texts that are empty once invisible characters are gone, and ids that are not those of their text."""

    name = "canonical"

    def prepare(self, survey: Survey) -> Judge:
        """Return the judge."""
        return _judge_canonical


def _judge_canonical(records: Sequence[Record]) -> list[Drop | None]:
    return [_canonical_drop(record) for record in records]


def _canonical_drop(record: Record) -> Drop | None:
    if not canonical(record["text"]):
        return Drop("empty", "")
    expected = record_id(record["text"], record["response"])
    if record["id"] != expected:
        return Drop("wrong id", f"of this text it is {expected}")
    return None


class Quality:
    """Generated texts that are too short, too long, refusals or talk about the task; people's own are not judged."""

    name = "quality"

    def __init__(self, config: CurationConfig) -> None:
        self.config = config

    def prepare(self, survey: Survey) -> Judge:
        """Return the judge."""
        return functools.partial(_judge_quality, self.config)


def _judge_quality(config: CurationConfig, records: Sequence[Record]) -> list[Drop | None]:
    return [None if record["method"] == "seed" else _quality_drop(record["text"], config) for record in records]


def _quality_drop(text: str, config: CurationConfig) -> Drop | None:
    count = len(words(text))
    if not config.min_words <= count <= config.max_words:
        return Drop("length", f"{count} words")
    if is_refusal(text):
        return Drop("refusal", "")
    if has_meta_text(text):
        return Drop("meta-text", "")
    return None


class LabelAgreement:
    """Generated records whose label or categories are not those of the record they were made from."""

    name = "label"

    def prepare(self, survey: Survey) -> Judge:
        """Gather the labels of all records by id."""
        labels = {row["id"]: (row["unsafe"], row["categories"]) for row in survey(_label_columns)}
        return functools.partial(_judge_label, labels)


def _label_columns(batch: pa.Table) -> pa.Table:
    return batch.select(["id", "unsafe", "categories"])


def _judge_label(labels: Mapping[str, tuple[bool, list[str] | None]], records: Sequence[Record]) -> list[Drop | None]:
    return [_label_drop(record, labels.get(record["parent_id"])) for record in records]


def _label_drop(record: Record, parent: tuple[bool, list[str] | None] | None) -> Drop | None:
    if parent is None:
        return None
    unsafe, categories = parent
    if record["unsafe"] != unsafe:
        return Drop("label differs from parent", record["parent_id"])
    new = set(record["categories"] or ()) - set(categories or ())
    if new:
        return Drop("category its parent lacks", ", ".join(sorted(new)))
    return None

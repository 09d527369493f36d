"""Stages that look at one record: is there a text, is it a request, has it the label it grew from."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from guardrail.curation.config import CurationConfig
from guardrail.curation.stage import Drop, Judge, Survey
from guardrail.records import Record, record_id
from guardrail.refusals import has_meta_text, is_refusal
from guardrail.text import canonical, words

#: A label: unsafe or not, and the categories (None: unknown).
Label = tuple[bool, list[str] | None]


class Canonical:
    """Texts that are empty once invisible characters are gone, and ids that are not those of their text."""

    name = "canonical"
    settings: Mapping[str, Any] = {}

    def prepare(self, survey: Survey) -> Judge:
        """Return the judge."""
        return _judge_canonical


def _judge_canonical(batch: pa.Table) -> list[Drop | None]:
    return [_canonical_drop(record) for record in batch.select(["id", "text", "response"]).to_pylist()]


def _canonical_drop(record: Record) -> Drop | None:
    if not canonical(record["text"]):
        return Drop("empty", "")
    expected = record_id(record["text"], record["response"])
    if record["id"] != expected:
        return Drop("wrong id", f"of this text it is {expected}")
    return None


class Quality:
    """Generated texts that are too short, too long, refusals or talk about the task.

    People's own are not judged, nor what a transform made of a text: an encoding has no words to count.
    """

    name = "quality"

    def __init__(self, config: CurationConfig) -> None:
        self.config = config
        self.settings: Mapping[str, Any] = config.model_dump(include={"min_words", "max_words"})

    def prepare(self, survey: Survey) -> Judge:
        """Return the judge."""
        return functools.partial(_judge_quality, self.config)


def _judge_quality(config: CurationConfig, batch: pa.Table) -> list[Drop | None]:
    texts, methods = batch["text"].to_pylist(), batch["method"].to_pylist()
    return [
        None if method == "seed" or method.startswith("transform:") else quality_drop(text, config)
        for text, method in zip(texts, methods, strict=True)
    ]


def quality_drop(text: str, config: CurationConfig) -> Drop | None:
    """Return why a generated text is no request of the right length, or None."""
    count = len(words(text))
    if not config.min_words <= count <= config.max_words:
        return Drop("length", f"{count} words")
    if is_refusal(text):
        return Drop("refusal", "")
    if has_meta_text(text):
        return Drop("meta-text", "")
    return None


class LabelAgreement:
    """Generated records whose label or categories are not those of the record they were made from.

    The parent need not have been kept: one that was the twin of another text still says what its children are. Methods
    that start with "contrast" turn the label on purpose.
    """

    name = "label"
    settings: Mapping[str, Any] = {}

    def prepare(self, survey: Survey) -> Judge:
        """Gather the labels of all input records by id."""
        return functools.partial(_judge_label, labels_by_id(survey.inputs(["id", "unsafe", "categories", "method"])))


def labels_by_id(rows: Iterable[Mapping[str, Any]]) -> dict[str, Label]:
    """Return the label of each id, without those on which the rows of the id disagree; a seed's word outweighs others.

    Categories are those that any of the rows has; unknown if all of them leave them open.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["id"], []).append(row)
    labels: dict[str, Label] = {}
    for record_id_, equals in groups.items():
        deciding = [row for row in equals if row["method"] == "seed"] or equals
        known = [row["categories"] for row in deciding if row["categories"] is not None]
        if len({row["unsafe"] for row in deciding}) == 1:
            labels[record_id_] = (
                deciding[0]["unsafe"],
                sorted({key for keys in known for key in keys}) if known else None,
            )
    return labels


def _judge_label(labels: Mapping[str, Label], batch: pa.Table) -> list[Drop | None]:
    records = batch.select(["unsafe", "categories", "parent_id", "method"]).to_pylist()
    return [label_drop(record, labels.get(record["parent_id"])) for record in records]


def label_drop(record: Mapping[str, Any], parent: Label | None) -> Drop | None:
    """Return how a record's label differs from its parent's, or None; None too where no parent's label is known."""
    if parent is None or record["method"] == "seed" or record["method"].startswith("contrast"):
        return None
    unsafe, categories = parent
    if record["unsafe"] != unsafe:
        return Drop("label differs from parent", record["parent_id"])
    # A parent of unknown categories lacks none for certain.
    new = set(record["categories"] or ()) - set(categories) if categories is not None else set()
    if new:
        return Drop("category its parent lacks", f"{record['parent_id']}: {', '.join(sorted(new))}")
    return None

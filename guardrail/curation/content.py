"""Stages that look at one record: is there a text, has it the label it grew from."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from guardrail.curation.equals import equals
from guardrail.curation.stage import CONTRAST, Drop, Judge, Survey
from guardrail.text import canonical

#: A label: unsafe or not, and the categories (None: unknown).
Label = tuple[bool, list[str] | None]


class Canonical:
    """Texts that are empty once invisible characters are gone."""

    name = "canonical"
    settings: Mapping[str, Any] = {}

    def prepare(self, survey: Survey) -> Judge:
        """Return the judge."""
        return _judge_canonical


def _judge_canonical(batch: pa.Table) -> list[Drop | None]:
    return [None if canonical(text) else Drop("empty", "") for text in batch["text"].to_pylist()]


class LabelAgreement:
    """Generated records whose label or categories are not those of the record they were made from.

    The parent need not have been kept: one that was the twin of another text still says what its children are. Methods
    that start with "contrast" turn the label on purpose.
    """

    name = "label"
    settings: Mapping[str, Any] = {}

    def prepare(self, survey: Survey) -> Judge:
        """Gather the labels of all input records that others were made from, by id."""
        parents = survey.kept(["parent_id"])["parent_id"].unique()
        records = survey.inputs(["id", "unsafe", "categories", "method"])
        return functools.partial(_judge_label, labels_by_id(records.filter(pc.is_in(records["id"], value_set=parents))))


def labels_by_id(records: pa.Table) -> pa.Table:
    """Return id, unsafe and categories of each id, without those on whose label its records disagree.

    A seed's word outweighs others. Categories are those that any of the records has; unknown if all leave them open.

    Args:
        records: id, unsafe, categories, method.
    """
    found = equals(records)
    known = found.deciding & found.records["categories"].is_valid().to_numpy()
    lists = found.records["categories"].filter(pa.array(known)).combine_chunks()
    owner = found.number[known][pc.list_parent_indices(lists).to_numpy()]
    pairs = pa.table({"number": owner, "category": lists.flatten()}).group_by(["number", "category"]).aggregate([])
    pairs = pairs.sort_by([("number", "ascending"), ("category", "ascending")])
    ends = np.cumsum(np.bincount(pairs["number"].to_numpy(), minlength=len(found.starts)))
    categories = pa.ListArray.from_arrays(
        pa.array(np.concatenate([[0], ends]), pa.int32()),
        pairs["category"].combine_chunks(),
        mask=pa.array(np.bincount(found.number[known], minlength=len(found.starts)) == 0),
    )
    labels = found.records.select(["id", "unsafe"]).take(pa.array(found.starts))
    return labels.append_column("categories", categories).filter(pa.array(~found.contradictory))


def _judge_label(labels: pa.Table, batch: pa.Table) -> list[Drop | None]:
    records = batch.select(["unsafe", "categories", "parent_id", "method"]).to_pylist()
    places = pc.index_in(batch["parent_id"], value_set=labels["id"].combine_chunks())
    parents = labels.take(places).to_pylist()
    return [
        label_drop(record, None if parent["id"] is None else (parent["unsafe"], parent["categories"]))
        for record, parent in zip(records, parents, strict=True)
    ]


def label_drop(record: Mapping[str, Any], parent: Label | None) -> Drop | None:
    """Return what is wrong with a record's label beside its parent's, or None; None, too, where that is not known."""
    if parent is None or record["method"] == "seed":
        return None
    unsafe, categories = parent
    if record["method"].startswith(CONTRAST):
        return Drop("label of what it was turned from", record["parent_id"]) if record["unsafe"] == unsafe else None
    if record["unsafe"] != unsafe:
        return Drop("label differs from parent", record["parent_id"])
    # A parent of unknown categories lacks none for certain.
    new = set(record["categories"] or ()) - set(categories) if categories is not None else set()
    if new:
        return Drop("category its parent lacks", f"{record['parent_id']}: {', '.join(sorted(new))}")
    return None

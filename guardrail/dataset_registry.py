"""What the registry knows of each public data set: the declarations of `dataset_registry.yaml`, and their meaning.

An entry says where a set lives, which of its columns are the text, how it labels a row and how its labels map onto our
categories; `guardrail.datasets` loads a set by its entry.
"""

import functools
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from guardrail.rows import did_you_mean
from guardrail.taxonomy import check_category, may_generate, with_parents

#: One column name or several, of which the first that a row has and that is filled counts.
Columns = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]
Row = Mapping[str, Any]


class _Declared(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AllUnsafe(_Declared):
    """Every row is unsafe."""

    rule: Literal["all_unsafe"]

    def unsafe(self, row: Row) -> bool | None:
        """Return the row's label; None if it has none."""
        return True


class AllBenign(_Declared):
    """Every row is benign."""

    rule: Literal["all_benign"]

    def unsafe(self, row: Row) -> bool | None:
        """Return the row's label; None if it has none."""
        return False


class ColumnEquals(_Declared):
    """The column names the label; an empty cell is a row nobody labelled."""

    rule: Literal["column_equals"]
    column: Columns
    unsafe_values: tuple[str, ...] = Field(alias="unsafe")
    benign_values: tuple[str, ...] = Field(alias="benign")

    def unsafe(self, row: Row) -> bool | None:
        """Return the row's label; None if it has none."""
        value = _normal(first_filled(row, self.column))
        if not value:
            return None
        if value in self.unsafe_values:
            return True
        if value in self.benign_values:
            return False
        known = ", ".join(self.unsafe_values + self.benign_values)
        raise ValueError(f"column {' or '.join(self.column)!r} holds {value[:40]!r}, not one of {known}")


class Threshold(_Declared):
    """The column is a score: unsafe from `unsafe_from` up, benign up to `benign_to`, undecided between them."""

    rule: Literal["threshold"]
    column: Columns
    unsafe_from: float
    benign_to: float

    def unsafe(self, row: Row) -> bool | None:
        """Return the row's label; None if it has none."""
        value = first_filled(row, self.column)
        if value is None:
            return None
        try:
            score = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"column {' or '.join(self.column)!r} holds no number") from None
        return True if score >= self.unsafe_from else False if score <= self.benign_to else None


class AnyLabel(_Declared):
    """The columns are 0/1 labels, missing where nobody judged: unsafe if any is 1."""

    rule: Literal["any_label"]
    columns: tuple[str, ...]

    def unsafe(self, row: Row) -> bool | None:
        """Return the row's label; None if it has none."""
        values = [_normal(row.get(column)) for column in self.columns]
        return "1" in values if any(values) else None


class CategoryMap(_Declared):
    """How a set's labels become categories of ours; see the head of the registry."""

    columns: Columns = ()
    separator: str | None = None
    map: dict[str, tuple[str, ...]] = {}
    flags: dict[str, tuple[str, ...]] = {}
    every: tuple[str, ...] = ()

    @field_validator("map", "flags")
    @classmethod
    def _known_keys(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for keys in value.values():
            for key in keys:
                check_category(key)
        return value

    @functools.cached_property
    def by_label(self) -> Mapping[str, tuple[str, ...]]:
        """The map, by labels as they are compared."""
        return {_normal(label): keys for label, keys in self.map.items()}

    def categories(self, row: Row, unsafe: bool) -> list[str] | None:
        """Return the row's categories with their parents; None if they are unknown."""
        if not unsafe:
            return None if any(row.get(column) is None for column in self.flags) else []
        found = set(self.every)
        for column, keys in self.flags.items():
            if _normal(row.get(column)) == "1":
                found.update(keys)
        whole = True
        for labels in _cells(row, self.columns, self.separator):
            mapped = [label for label in labels if label in self.by_label]
            found.update(key for label in mapped for key in self.by_label[label])
            # One of a cell's labels is left out: which of our other categories the row has is unknown.
            whole &= not mapped or len(mapped) == len(labels)
        return with_parents(found) if found and (whole or not may_generate(found)) else None


class TagColumn(_Declared):
    """A column whose values become tags, all of them or those that `map` names."""

    column: Columns
    separator: str | None = None
    map: dict[str, str] | None = None

    def tags(self, row: Row) -> list[str]:
        """Return the row's tags."""
        labels = next(iter(_cells(row, self.column, self.separator, normal=self.map is not None)), [])
        return labels if self.map is None else [self.map[label] for label in labels if label in self.map]


class Hub(_Declared):
    """Where the set lives on the Hugging Face hub; `options` go to the loader of its file format."""

    id: str
    revision: str
    split: str
    config: str | None = None
    gated: bool = False
    options: dict[str, Any] = {}


Label = Annotated[AllUnsafe | AllBenign | ColumnEquals | Threshold | AnyLabel, Field(discriminator="rule")]
Tag = Annotated[TagColumn, BeforeValidator(lambda value: {"column": value} if isinstance(value, str) else value)]


class DatasetEntry(_Declared):
    """What the registry knows of one public set; the fields are explained at the head of the registry."""

    title: str
    licence: str
    use: Literal["train", "eval"]
    url: str
    hub: Hub | None = None
    files: tuple[str, ...] = ()
    levels: tuple[str, str, str] | None = None
    text: Columns
    before: str | None = None
    after: str | None = None
    drop_texts: tuple[str, ...] = ()
    response: str | None = None
    label: Label
    categories: CategoryMap | None = None
    tags: tuple[Tag, ...] = ()
    language: str = "en"


@functools.cache
def registry() -> Mapping[str, DatasetEntry]:
    """Return every registered data set by name."""
    declared = yaml.safe_load(resources.files("guardrail").joinpath("dataset_registry.yaml").read_text("utf-8"))
    return {name: DatasetEntry.model_validate(entry) for name, entry in declared.items()}


def registry_entry(name: str) -> DatasetEntry:
    """Return one entry of the registry.

    Raises:
        ValueError: no such name; the message names the nearest one.
    """
    if name not in registry():
        raise ValueError(f"unknown data set {name!r}{did_you_mean(name, registry())} Known: {', '.join(registry())}")
    return registry()[name]


def first_filled(row: Row, columns: Sequence[str]) -> Any:
    """Return the first filled cell of the columns, or None; ValueError if the row has none of the columns."""
    present = [column for column in columns if column in row]
    if not present:
        raise ValueError(f"no column {' or '.join(map(repr, columns))}; there are {', '.join(map(repr, row))}")
    cells = (row[column] for column in present)
    return next((cell for cell in cells if cell is not None and (not isinstance(cell, str) or cell.strip())), None)


def _normal(value: Any) -> str:
    """Return a label as CSV, JSON and parquet agree on it: "1" for 1 and 1.0, "true" for True, "" for None."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip().casefold()


def _cells(row: Row, columns: Sequence[str], separator: str | None, *, normal: bool = True) -> list[list[str]]:
    """Return the labels of each of the columns that a row has; a cell is one label, a list, or a {label: bool}."""
    present = [column for column in columns if column in row]
    if columns and not present:
        first_filled(row, columns)  # raises, naming what there is
    cells = []
    for column in present:
        cell = row[column]
        if isinstance(cell, Mapping):
            cell = [label for label, applies in cell.items() if applies]
        elif isinstance(cell, str) and separator:
            cell = cell.split(separator)
        labels = [
            _normal(each) if normal else str(each).strip() for each in (cell if isinstance(cell, list) else [cell])
        ]
        cells.append([label for label in labels if label and label != "None"])
    return cells

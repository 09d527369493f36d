"""The evaluation item: one labelled text of an evaluation set, and the files that hold one in a row.

No message quotes a text.
"""

import dataclasses
import difflib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardrail.rows import SourceRow, listed, raise_problems, read_rows, text_problem, truth
from guardrail.taxonomy import with_parents

logger = logging.getLogger(__name__)

_TABLES = ("csv", "tsv")  # whose cells are text, whatever is meant


@dataclass(frozen=True)
class EvaluationItem:
    """One line of an evaluation file; `categories` and `tags` are None where the set does not have them."""

    id: str
    text: str
    response: str | None
    unsafe: bool
    categories: list[str] | None
    tags: list[str] | None


def read_evaluation_file(path: Path) -> list[EvaluationItem]:
    """Return the items of a file in the evaluation format: JSON lines, or by name a JSON array, CSV, TSV or parquet.

    It has the keys id, text, response (may be null), unsafe, and perhaps categories and tags; other keys are ignored,
    unless they look like one of these misspelt. An empty response says nothing that can be judged, and is no prompt:
    such lines are left out, and counted in a warning. Cells of CSV and TSV that are empty are null, truth is written as
    in seeds (true, 1, yes), and lists with ; or | between.

    Raises:
        ValueError: the file cannot be read, has bad lines (each is listed with its line and key), or none that is kept.
    """
    items: list[EvaluationItem] = []
    first_use: dict[str, str] = {}
    problems: list[str] = []
    suffix = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    for row in read_rows(path, lines=suffix not in ("json", "parquet", *_TABLES)):
        if suffix in _TABLES:
            row = dataclasses.replace(row, values={key: _of_cell(key, cell) for key, cell in row.values.items()})
        item, found = _evaluation_item(row)
        problems += found
        if item is not None:
            if item.id in first_use:
                problems.append(f"{row.where}, key 'id': the same id as in {first_use[item.id]}")
            first_use.setdefault(item.id, row.where)
            items.append(item)
    raise_problems(path, problems)
    kept = [item for item in items if item.response is None or item.response.strip()]
    if not kept:
        raise ValueError(f"{path}: every row has an empty response; give null where the prompt is what is judged")
    if empty := len(items) - len(kept):
        logger.warning("%s: %d of %d rows have an empty response, and are left out", path, empty, len(items))
    return kept


def _of_cell(key: str, cell: str | None) -> Any:
    if not cell or not cell.strip():
        return None
    if key == "unsafe":
        said = truth(cell)
        return cell if said is None else said
    return listed(cell) if key in ("categories", "tags") else cell


def _evaluation_item(row: SourceRow) -> tuple[EvaluationItem | None, list[str]]:
    """Return the item, or what is wrong with its line."""
    if row.problem:
        return None, [f"{row.where}: {row.problem}"]
    values = row.values
    problems = [f"{row.where}, key {key!r}: {problem}" for key, problem in _evaluation_problems(values)]
    if problems:
        return None, problems
    categories = values.get("categories")
    return (
        EvaluationItem(
            id=str(values["id"]),
            text=values["text"],
            response=values.get("response"),
            unsafe=values["unsafe"],
            categories=None if categories is None else with_parents(categories),
            tags=values.get("tags"),
        ),
        [],
    )


def _evaluation_problems(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (key, what is wrong) for the values of one line of an evaluation file."""
    known = list(EvaluationItem.__dataclass_fields__)
    for key in values.keys() - set(known):
        if near := difflib.get_close_matches(key, known, n=1, cutoff=0.8):
            yield key, f"unknown; did you mean {near[0]!r}?"
    if not isinstance(values.get("id"), str | int) or isinstance(values["id"], bool) or values["id"] == "":
        yield "id", "must be a string"
    if problem := text_problem(values.get("text")):
        yield "text", problem
    if not isinstance(values.get("response"), str | None):
        yield "response", "must be a string or null"
    if not isinstance(values.get("unsafe"), bool):
        yield "unsafe", "must be true or false"
    for key in ("categories", "tags"):
        value = values.get(key)
        if value is not None and not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
            yield key, "must be a list of strings"
        elif key == "categories" and value:
            if values.get("unsafe") is False:
                yield key, "a benign item cannot have harm categories"
            try:
                with_parents(value)
            except ValueError as error:
                yield key, str(error)

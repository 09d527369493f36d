"""Seeds: the labelled texts everything starts from, ours and the user's, and how they are split."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from guardrail.records import Record, make_record, record_id
from guardrail.rows import (
    SourceRow,
    did_you_mean,
    json_line_rows,
    listed,
    raise_problems,
    read_rows,
    text_problem,
    truth,
)

TRAIN, VALIDATION, HELD_OUT = "train", "validation", "held_out"
EMBEDDED_KEYS = frozenset({"text", "unsafe", "categories", "topic"})  # and a "response" where there is one
REQUIRED_COLUMNS = ("text", "unsafe")
OPTIONAL_COLUMNS = ("categories", "response", "language", "licence", "source")
SEED_SUFFIXES = (".csv", ".jsonl", ".json", ".parquet")


def embedded_seeds() -> list[Record]:
    """Return the seeds that rayguard ships: unsafe requests, look-alikes that are benign, and ordinary requests.

    `source` is "rayguard-seeds:" and the topic; a look-alike's topic is the category that it resembles.

    Raises:
        ValueError: a seed file is broken, or two seeds with one text have different labels.
    """
    return _embedded("seed_data", "rayguard-seeds")


def embedded_texts() -> list[Record]:
    """Return longer and harder texts that rayguard ships to train guards on; nothing is grown from them.

    Statements and stories, requests at the end of long passages, frames around harm and around nothing, many voices,
    short pairs that differ in one thing, and replies to either kind of request: the label is the reply's.
    `source` is "rayguard-texts:" and the topic.

    Raises:
        ValueError: as `embedded_seeds`.
    """
    return _embedded("guard_data", "rayguard-texts")


def _embedded(name: str, source: str) -> list[Record]:
    folder = resources.files("guardrail").joinpath(name)
    records: list[Record] = []
    places: list[str] = []
    for file in sorted(folder.iterdir() if folder.is_dir() else (), key=lambda each: each.name):
        if not file.name.endswith(".jsonl"):
            continue
        for row in json_line_rows(file.read_text("utf-8").split("\n")):
            place = f"{file.name}, {row.where}"
            try:
                records.append(_embedded_seed(row, source))
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from None
            places.append(place)
    if not records:
        raise ValueError(f"this installation of rayguard has no seed files in {folder}")
    kept, contradictions = _without_duplicates(records, places)
    if contradictions:
        raise ValueError(f"contradictory seeds: {'; '.join(contradictions)}")
    return kept


def _embedded_seed(row: SourceRow, source: str) -> Record:
    if row.problem or row.values.keys() - {"response"} != EMBEDDED_KEYS:
        keys = ", ".join(sorted(EMBEDDED_KEYS))
        raise ValueError(row.problem or f"a seed has exactly the keys {keys}, and response where there is one")
    text, unsafe, topic = (row.values[key] for key in ("text", "unsafe", "topic"))
    response = row.values.get("response")
    problem = text_problem(text) or ("response" in row.values and text_problem(response))
    if problem or not isinstance(unsafe, bool):
        raise ValueError(f"text {problem}" if problem else "unsafe must be true or false")
    return make_record(
        text,
        unsafe=unsafe,
        source=f"{source}:{topic}",
        categories=row.values["categories"],
        response=response,
        licence="Apache-2.0",
        language=None if topic == "other_languages" else "en",
    )


@dataclass(frozen=True)
class LabelledRow:
    """One row of a file of labelled rows.

    Attributes:
        number: of the row, from 1, the header not counted.
        where: as messages name it.
        record: what it says; None where it is wrong.
        problems: what is wrong with it.
    """

    number: int
    where: str
    record: Record | None
    problems: tuple[str, ...] = ()


def labelled_rows(path: Path) -> Iterator[LabelledRow]:
    """Yield the labelled rows of a CSV, JSON-lines (.jsonl, .json) or parquet file, one by one.

    Columns: `text` and `unsafe` (true/false, 1/0, yes/no) are required. `categories` (a list, or keys separated by ; or
    |), `response`, `language`, `licence` and `source` may be absent or empty. Absent or empty categories are unknown
    ones; an empty list says that none applies. `source` defaults to the name of the file.

    Raises:
        ValueError: the file cannot be read, has no rows, lacks a column or has an unknown one.
    """
    suffix = path.suffix.lower()
    if suffix not in SEED_SUFFIXES:
        raise ValueError(f"{path}: seeds are read from {', '.join(SEED_SUFFIXES)} files, not {suffix or 'this one'}")
    number, header_checked = 0, suffix not in (".csv", ".parquet")
    for number, row in enumerate(read_rows(path), 1):
        if not header_checked and not row.problem:  # one header for all rows: complain of it once
            raise_problems(path, list(_header_problems(row.values)))
            header_checked = True
        fields, found = _seed_fields(row)
        record = None
        if not found:
            try:
                record = make_record(source=fields.pop("source", None) or path.name, **fields)
            except ValueError as error:  # what is left concerns the categories: a key, or a benign row that has some
                found = [f"column 'categories': {error}"]
        yield LabelledRow(number, row.where, record, tuple(found))
    if not number:
        raise ValueError(f"{path} has no rows; give it at least one seed")


def load_seeds(path: Path) -> list[Record]:
    """Return the user's seeds from a file that `labelled_rows` reads; of rows of one text and label the first.

    Raises:
        ValueError: as `labelled_rows`; or the file has bad rows: all of them are found, ten are listed with their row,
            column and what to do; or two rows give one text different labels.
    """
    records: list[Record] = []
    places: list[str] = []
    problems: list[str] = []
    for row in labelled_rows(path):
        problems += [f"{row.where}: {problem}" for problem in row.problems]
        if row.record:
            records.append(row.record)
            places.append(row.where)
    kept, contradictions = _without_duplicates(records, places)
    raise_problems(path, problems + contradictions)
    return kept


def load_or_embedded(path: Path | None) -> list[Record]:
    """Return the user's seeds where a file is given, ours where none is."""
    return embedded_seeds() if path is None else load_seeds(path)


def split_by_seed(records: Sequence[Record], *, validation: float, held_out: float) -> dict[str, list[Record]]:
    """Split records so that nothing that grew from one seed is on two sides: TRAIN, VALIDATION and HELD_OUT.

    Each part has its share of every source and label, small sources taken together. Where a seed goes hangs on its id
    among those of its kind.

    Args:
        records: any; those of one `seed_id` stay together, and responses to one request.
        validation, held_out: shares of the seeds, in [0, 1).
    """
    members: dict[str, list[Record]] = {}
    for record, family in zip(records, families(records), strict=True):
        members.setdefault(family, []).append(record)
    kinds: dict[tuple[str, bool], list[str]] = {}
    for seed_id in sorted(members):
        eldest = min(members[seed_id], key=lambda r: (r["id"] != seed_id, r["id"]))
        kinds.setdefault((eldest["source"], eldest["unsafe"]), []).append(seed_id)
    # Of a kind so small that a part of it rounds to nothing all would be trained on: such kinds are dealt together.
    shares = [share for share in (validation, held_out) if share]
    small: dict[bool, list[str]] = {}
    for kind in [kind for kind, ids in kinds.items() if any(round(len(ids) * share) == 0 for share in shares)]:
        small.setdefault(kind[1], []).extend(kinds.pop(kind))
    parts: dict[str, list[Record]] = {TRAIN: [], VALIDATION: [], HELD_OUT: []}
    for ordered in [*(kinds[kind] for kind in sorted(kinds)), *(sorted(small[label]) for label in sorted(small))]:
        first, second = round(len(ordered) * validation), round(len(ordered) * (validation + held_out))
        for index, seed_id in enumerate(ordered):
            name = VALIDATION if index < first else HELD_OUT if index < second else TRAIN
            parts[name] += members[seed_id]
    return parts


def families(records: Sequence[Record]) -> list[str]:
    """Return what each record grew from: the id of its seed, or that of the request that its seed answers.

    Two responses to one request are two seeds, and it is the request that must not be on two sides of a split.
    """
    asked = {r["id"]: record_id(r["text"]) for r in records if r["response"] and r["seed_id"] == r["id"]}
    return [asked.get(record["seed_id"]) or record["seed_id"] for record in records]


def _header_problems(header: Mapping[str, Any]) -> Iterator[str]:
    known = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
    for column in header:
        if column not in known:
            near = did_you_mean(column, known)
            yield f"unknown column {column!r}{near} Rename or remove it; known: {', '.join(known)}"
    for column in REQUIRED_COLUMNS:
        if column not in header:
            yield f"the column {column!r} is missing; add it"


def _seed_fields(row: SourceRow) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments of `make_record` and what is wrong with the row."""
    if row.problem:
        return {}, [row.problem]
    problems = list(_header_problems(row.values))
    if problems:
        return {}, problems

    def complain(column: str, problem: str) -> None:
        problems.append(f"column {column!r}: {problem}")

    fields: dict[str, Any] = {"text": row.values["text"]}
    if problem := text_problem(fields["text"]):
        complain("text", problem)
    fields["unsafe"] = truth(row.values["unsafe"])
    if fields["unsafe"] is None:
        complain("unsafe", f"{str(row.values['unsafe'])[:40]!r} is no truth value; write true or false")
    for column in OPTIONAL_COLUMNS:
        value = row.values.get(column)
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        if column == "categories":
            if isinstance(value, str):
                value = listed(value)
            if not isinstance(value, list) or not all(isinstance(key, str) for key in value):
                complain(column, "must be a list of keys, or keys separated by ;")
        elif problem := text_problem(value):
            complain(column, problem)
        fields[column] = value
    return fields, problems


def _without_duplicates(records: Sequence[Record], places: Sequence[str]) -> tuple[list[Record], list[str]]:
    """Return the first record of each id, and where two records of one id have different labels."""
    first: dict[str, int] = {}
    contradictions: list[str] = []
    for index, record in enumerate(records):
        earlier = first.setdefault(record["id"], index)
        if records[earlier]["unsafe"] != record["unsafe"]:
            contradictions.append(
                f"{places[index]}, column 'unsafe': the same text as in {places[earlier]}, with the other label; "
                "keep one of the two"
            )
    return [records[index] for index in first.values()], contradictions

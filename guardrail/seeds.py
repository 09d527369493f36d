"""Seeds: the labelled texts everything starts from, ours and the user's, and which of them may be generated from.

Also the reading of files of labelled rows, which public data sets share: rows come with where they stand in their file,
so that every complaint can name it. No message quotes a text.
"""

import csv
import difflib
import functools
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from guardrail.records import Record, make_record
from guardrail.taxonomy import may_generate
from guardrail.text import canonical

EMBEDDED_KEYS = frozenset({"text", "unsafe", "categories", "topic"})
REQUIRED_COLUMNS = ("text", "unsafe")
OPTIONAL_COLUMNS = ("categories", "response", "language", "licence", "source")
SEED_SUFFIXES = (".csv", ".jsonl", ".json", ".parquet")

# 1.0 and 0.0 are what a column of numbers with a gap becomes in parquet.
_TRUTH = {"true": True, "1": True, "1.0": True, "yes": True, "false": False, "0": False, "0.0": False, "no": False}


# --- Our seeds, the user's seeds ------------------------------------------------------------------------------------


def embedded_seeds() -> list[Record]:
    """Return the seeds that rayguard ships: unsafe requests, look-alikes that are benign, and ordinary requests.

    `source` is "rayguard-seeds:" and the topic; a look-alike's topic is the category that it resembles.

    Raises:
        ValueError: a seed file is broken, or two seeds with one text have different labels.
    """
    folder = resources.files("guardrail").joinpath("seed_data")
    records: list[Record] = []
    places: list[str] = []
    for file in sorted(folder.iterdir() if folder.is_dir() else (), key=lambda each: each.name):
        if not file.name.endswith(".jsonl"):
            continue
        for row in _json_line_rows(file.read_text("utf-8")):
            place = f"{file.name}, {row.where}"
            try:
                records.append(_embedded_seed(row))
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from None
            places.append(place)
    if not records:
        raise ValueError(f"this installation of rayguard has no seed files in {folder}")
    kept, contradictions = _without_duplicates(records, places)
    if contradictions:
        raise ValueError(f"contradictory seeds: {'; '.join(contradictions)}")
    return kept


def _embedded_seed(row: "SourceRow") -> Record:
    if row.problem or row.values.keys() != EMBEDDED_KEYS:
        raise ValueError(row.problem or f"a seed has exactly the keys {', '.join(sorted(EMBEDDED_KEYS))}")
    text, unsafe, topic = (row.values[key] for key in ("text", "unsafe", "topic"))
    problem = text_problem(text)
    if problem or not isinstance(unsafe, bool):
        raise ValueError(f"text {problem}" if problem else "unsafe must be true or false")
    return make_record(
        text,
        unsafe=unsafe,
        source=f"rayguard-seeds:{topic}",
        categories=row.values["categories"],
        licence="Apache-2.0",
        language=None if topic == "other_languages" else "en",
    )


def load_seeds(path: Path) -> list[Record]:
    """Return the user's seeds from a CSV, JSON-lines (.jsonl, .json) or parquet file.

    Columns: `text` and `unsafe` (true/false, 1/0, yes/no) are required. `categories` (a list, or keys separated by ; or
    |), `response`, `language`, `licence` and `source` may be absent or empty. Absent or empty categories are unknown
    ones; an empty list says that none applies. `source` defaults to the name of the file. Of rows that repeat a text
    with the same label the first is kept.

    Raises:
        ValueError: the file cannot be read, lacks a column or has an unknown one, or has bad rows: all of them are
            found, ten are listed with their row, column and what to do; or two rows give one text different labels.
    """
    suffix = path.suffix.lower()
    if suffix not in SEED_SUFFIXES:
        raise ValueError(f"{path}: seeds are read from {', '.join(SEED_SUFFIXES)} files, not {suffix or 'this one'}")
    rows = list(read_rows(path))
    if not rows:
        raise ValueError(f"{path} has no rows; give it at least one seed")
    header = next((row.values for row in rows if not row.problem), None)
    if header is not None and suffix in (".csv", ".parquet"):  # one header for all rows: complain of it once
        raise_problems(path, list(_header_problems(header)))
    records: list[Record] = []
    places: list[str] = []
    problems: list[str] = []
    for row in rows:
        fields, found = _seed_fields(row)
        if not found:
            try:
                records.append(make_record(source=fields.pop("source", None) or path.name, **fields))
                places.append(row.where)
            except ValueError as error:  # what is left concerns the categories: a key, or a benign row that has some
                found = [f"{row.where}, column 'categories': {error}"]
        problems += found
    kept, contradictions = _without_duplicates(records, places)
    raise_problems(path, problems + contradictions)
    return kept


def _header_problems(header: Mapping[str, Any]) -> Iterator[str]:
    known = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
    for column in header:
        if column not in known:
            near = did_you_mean(column, known)
            yield f"unknown column {column!r}{near} Rename or remove it; known: {', '.join(known)}"
    for column in REQUIRED_COLUMNS:
        if column not in header:
            yield f"the column {column!r} is missing; add it"


def _seed_fields(row: "SourceRow") -> tuple[dict[str, Any], list[str]]:
    """Return the arguments of `make_record` and what is wrong with the row."""
    if row.problem:
        return {}, [f"{row.where} {row.problem}"]
    problems = [f"{row.where}: {problem}" for problem in _header_problems(row.values)]
    if problems:
        return {}, problems

    def complain(column: str, problem: str) -> None:
        problems.append(f"{row.where}, column {column!r}: {problem}")

    fields: dict[str, Any] = {"text": row.values["text"]}
    if problem := text_problem(fields["text"]):
        complain("text", problem)
    fields["unsafe"] = _TRUTH.get(str(row.values["unsafe"]).strip().lower())
    if fields["unsafe"] is None:
        complain("unsafe", f"{str(row.values['unsafe'])[:40]!r} is no truth value; write true or false")
    for column in OPTIONAL_COLUMNS:
        value = row.values.get(column)
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        if column == "categories":
            if isinstance(value, str):
                value = [key.strip() for key in re.split("[;|]", value) if key.strip()]
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


# --- What may be generated from -------------------------------------------------------------------------------------

_MINORS = re.compile(
    r"\b(child(ren|hood|s)?|kids?|minors?|underaged?|(pre)?teen(s|age|aged|ager|agers)?|toddlers?|infants?|bab(y|ies)"
    r"|juveniles?|(school)?(girl|boy)s?|daughters?|pupils?|preschoolers?)\b"
)
_SEX = re.compile(
    r"\b(sex|sexy|sexual\w*|sext(s|ing)?|porn\w*|nud(e|es|ity)|naked|erotic\w*|groom(s|ed|ing|er)?|molest\w*|predator\w*"
    r"|fetish\w*|lewd|incest|rap(e|es|ed|ing|ist|ists)|seduc\w*|prostitut\w*|explicit|sensual|intercourse|masturbat\w*)\b"
)
_BOTH = re.compile(r"\b(csam|csem|lolicon|loli|shotacon|pa?edophil\w*|jailbait)\b")


def generation_seeds(records: Iterable[Record]) -> list[Record]:
    """Return the records that synthesis and attack may build on.

    Content that sexualises minors is classified, never generated: a paraphrase, a frame or an RL completion of such a
    seed would be new material of that kind, whatever it is made for. So every record with such a category goes, and,
    because many sets give no categories, every record whose words speak of minors and of sex, unsafe or not. The word
    lists are English and meant to drop too much rather than too little.
    """
    return [record for record in records if may_generate(record["categories"]) and not _sexualises_minors(record)]


def _sexualises_minors(record: Record) -> bool:
    text = canonical(f"{record['text']} {record['response'] or ''}")
    return bool(_BOTH.search(text) or (_MINORS.search(text) and _SEX.search(text)))


# --- Files of rows --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SourceRow:
    """One row of a file: where it is ("row 2 (line 5)"), its values by column, or why it could not be read."""

    where: str
    values: dict[str, Any]
    problem: str | None = None


def read_rows(path: Path, *, levels: tuple[str, str, str] | None = None, lines: bool = False) -> Iterable[SourceRow]:
    """Return the rows of a CSV, TSV, JSON, JSON-lines (each perhaps gzipped) or parquet file.

    A .json file is an array of objects, or JSON lines, or, with `levels`, nested: {A: {B: [text]}} becomes rows whose
    columns are the three levels. `lines` reads JSON lines whatever the name says. A row that cannot be parsed is
    returned with its `problem`.

    Raises:
        ValueError: the file is missing, unreadable, not UTF-8, empty, of another format, or broken as a whole.
    """
    suffixes = [suffix for suffix in path.suffixes if suffix.lower() != ".gz"]
    suffix = ".jsonl" if lines else suffixes[-1].lower() if suffixes else ""
    if suffix == ".parquet":
        return _parquet_rows(path)
    reader: Callable[[str], Iterable[SourceRow]]
    if suffix in (".csv", ".tsv"):
        reader = functools.partial(_csv_rows, delimiter="\t" if suffix == ".tsv" else ",")
    elif suffix == ".jsonl":
        reader = _json_line_rows
    elif suffix == ".json":
        reader = functools.partial(_json_rows, levels=levels)
    else:
        raise ValueError(f"{path}: unknown format {suffix!r}")
    text = _read_text(path)
    if not text.strip():
        raise ValueError(f"{path} is empty")
    try:
        return list(reader(text))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def raise_problems(path: Path, problems: Sequence[str], shown: int = 10) -> None:
    """Raise one ValueError that lists the problems of a file, the first `shown` of them; do nothing if it has none."""
    if not problems:
        return
    listed = "".join(f"\n  {problem}" for problem in problems[:shown])
    more = f"\n  and {len(problems) - shown} more" if len(problems) > shown else ""
    raise ValueError(f"{path}: {len(problems)} problem{'s' if len(problems) > 1 else ''} to mend:{listed}{more}")


def text_problem(value: Any) -> str | None:
    """Return why a value cannot be a text, or None if it can."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return "is empty; every row needs a text"
    if not isinstance(value, str):
        return f"must be text, not {type(value).__name__}"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return "is not valid Unicode (it has half of a surrogate pair)"
    return None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean NAME?", or a full stop where nothing known is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else "."


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
        if path.suffix.lower() == ".gz":
            data = gzip.decompress(data)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except (OSError, EOFError, zlib.error) as error:  # the last two: a gzip file that was cut short, or is broken
        raise ValueError(f"cannot read {path}: {error}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"{path} is not UTF-8 (line {line}, byte {error.start}); save it as UTF-8") from None


def _csv_rows(text: str, delimiter: str) -> Iterator[SourceRow]:
    # strict: without it, a quote that is never closed swallows the rest of the file in silence.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    number = 0
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"not readable as CSV from line {line}: {error}") from None
        if not cells:
            continue
        if header is None:
            header = cells
            if twice := sorted({name for name in header if header.count(name) > 1}):
                raise ValueError(f"two columns are named {twice[0]!r}")
            continue
        number += 1
        where = f"row {number} (line {line})"
        if len(cells) > len(header):
            yield SourceRow(where, {}, f"has {len(cells)} cells, the header has {len(header)}; quote texts with commas")
        else:
            cells += [""] * (len(header) - len(cells))
            yield SourceRow(where, dict(zip(header, cells, strict=True)))


def _json_line_rows(text: str) -> Iterator[SourceRow]:
    # Not splitlines: a JSON string may hold U+2028 and its like as they are.
    filled = ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
    for row, (number, line) in enumerate(filled, 1):
        where = f"row {row} (line {number})"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield SourceRow(where, {}, f"is not JSON: {error}")
            continue
        problem = None if isinstance(values, dict) else "is not a JSON object; write one object a line"
        yield SourceRow(where, {} if problem else values, problem)


def _json_rows(text: str, levels: tuple[str, str, str] | None) -> Iterator[SourceRow]:
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        for number, values in enumerate(rows, 1):
            problem = None if isinstance(values, dict) else "is not a JSON object"
            yield SourceRow(f"row {number}", {} if problem else values, problem)
    elif levels is None:
        yield from _json_line_rows(text)
    else:
        yield from _nested_rows(json.loads(text), levels)


def _nested_rows(content: Any, levels: tuple[str, str, str]) -> Iterator[SourceRow]:
    number = 0
    for outer, inners in content.items():
        for inner, leaves in inners.items():
            for leaf in leaves:
                number += 1
                yield SourceRow(f"row {number}", dict(zip(levels, (outer, inner, leaf), strict=True)))


def _parquet_rows(path: Path) -> list[SourceRow]:
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    try:
        rows = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path} as parquet: {error}") from error
    return [SourceRow(f"row {number}", row) for number, row in enumerate(rows, 1)]

"""Files of labelled rows, in the formats people keep them in.

A row comes with where it stands in its file, so that every complaint can name it. No message quotes a text.
"""

import contextlib
import csv
import difflib
import functools
import gzip
import io
import itertools
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
from pyarrow.dataset import dataset

# 1.0 and 0.0 are what a column of numbers with a gap becomes in parquet.
_TRUTH = {"true": True, "1": True, "1.0": True, "yes": True, "false": False, "0": False, "0.0": False, "no": False}
_UNDECODED = re.compile("[\udc80-\udcff]")  # what `surrogateescape` makes of a byte that is no UTF-8
_NOT_UTF8 = "is not UTF-8; save it as UTF-8"
# What stands before the first row of a JSON array, and before any other, or instead of it.
_FIRST = re.compile(r"[ \t\n\r]*\[[ \t\n\r]*(?P<end>\])?")
_NEXT = re.compile(r"[ \t\n\r]*(?:(?P<end>\])|,[ \t\n\r]*)")
_AT_ONCE = 2**20  # characters of a JSON array
_MOST_AT_ONCE = 2**25  # the same: a row may be as long, and what is broken is read no further


@dataclass(frozen=True)
class SourceRow:
    """One row of a file: where it is ("row 2 (line 5)"), its values by column, or why it could not be read."""

    where: str
    values: dict[str, Any]
    problem: str | None = None


def read_rows(path: Path, *, levels: tuple[str, str, str] | None = None, lines: bool = False) -> Iterator[SourceRow]:
    """Yield the rows of a CSV, TSV, JSON, JSON-lines (each perhaps gzipped) or parquet file, one by one.

    A .json file is an array of objects, or JSON lines, or, with `levels`, nested: {A: {B: [text]}} becomes rows whose
    columns are the three levels; only what is nested is read as a whole. `lines` reads JSON lines whatever the name
    says. A row that cannot be parsed, or is not UTF-8, has a `problem`.

    Raises:
        ValueError: the file is missing, unreadable, empty or of another format; or, after the rows before, broken.
    """
    suffixes = [suffix for suffix in path.suffixes if suffix.lower() != ".gz"]
    suffix = ".jsonl" if lines else suffixes[-1].lower() if suffixes else ""
    if suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    reader: Callable[[TextIO], Iterable[SourceRow]]
    if suffix in (".csv", ".tsv"):
        reader = functools.partial(_csv_rows, delimiter="\t" if suffix == ".tsv" else ",")
    elif suffix == ".jsonl":
        reader = json_line_rows
    elif suffix == ".json":
        reader = functools.partial(_json_rows, levels=levels)
    else:
        raise ValueError(f"{path}: unknown format {suffix!r}")
    # A cell of CSV may hold \r, and a JSON string U+2028 and its like, as they are.
    with _opened(path, newline="" if suffix in (".csv", ".tsv") else "\n") as file:
        if not _first_character(file):
            raise ValueError(f"{path} is empty")
        try:
            yield from reader(file)
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


def truth(value: Any) -> bool | None:
    """Return what a cell says: true or false, 1 or 0, yes or no; None where it says neither."""
    return _TRUTH.get(str(value).strip().lower())


def listed(cell: str) -> list[str]:
    """Return the names in a cell that are separated by ; or |."""
    return [name.strip() for name in re.split("[;|]", cell) if name.strip()]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean NAME?", or a full stop where nothing known is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else "."


@contextlib.contextmanager
def _opened(path: Path, newline: str) -> Iterator[TextIO]:
    """Open a file, perhaps gzipped, to read; bytes that are no UTF-8 become `_UNDECODED`, for the row that has them."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as opened:
            file = opened if opened.seekable() else io.BytesIO(opened.read())  # a pipe is read as a whole
            yield io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline=newline)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except (OSError, EOFError, zlib.error) as error:  # the last two: a gzip file that was cut short, or is broken
        raise ValueError(f"cannot read {path}: {error}") from error


def _first_character(file: TextIO) -> str:
    """Return the first character that is no space, "" if there is none; the file is at its start again."""
    first = ""
    while not first and (part := file.read(1024)):
        first = part.lstrip()[:1]
    file.seek(0)
    return first


def _csv_rows(file: TextIO, delimiter: str) -> Iterator[SourceRow]:
    csv.field_size_limit(sys.maxsize)  # of this module: 131,072 characters by default
    # strict: without it, a quote that is never closed swallows the rest of the file in silence.
    reader = csv.reader(file, delimiter=delimiter, strict=True)
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
            if any(map(_UNDECODED.search, header)):
                raise ValueError(f"is not UTF-8 (line {line}, its header); save it as UTF-8")
            if twice := sorted({name for name in header if header.count(name) > 1}):
                raise ValueError(f"two columns are named {twice[0]!r}")
            continue
        number += 1
        where = f"row {number} (line {line})"
        if any(map(_UNDECODED.search, cells)):
            yield SourceRow(where, {}, _NOT_UTF8)
        elif len(cells) > len(header):
            yield SourceRow(where, {}, f"has {len(cells)} cells, the header has {len(header)}; quote texts with commas")
        else:
            cells += [""] * (len(header) - len(cells))
            yield SourceRow(where, dict(zip(header, cells, strict=True)))


def json_line_rows(lines: Iterable[str]) -> Iterator[SourceRow]:
    """Yield the rows of JSON lines; a line that is no JSON object is a row with a problem."""
    filled = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    for row, (number, line) in enumerate(filled, 1):
        where = f"row {row} (line {number})"
        if _UNDECODED.search(line):
            yield SourceRow(where, {}, _NOT_UTF8)
            continue
        try:
            values = json.loads(line.rstrip())
        except (ValueError, RecursionError) as error:
            yield SourceRow(where, {}, f"is not JSON: {error}")
            continue
        problem = None if isinstance(values, dict) else "is not a JSON object; write one object a line"
        yield SourceRow(where, {} if problem else values, problem)


def _json_rows(file: TextIO, levels: tuple[str, str, str] | None) -> Iterator[SourceRow]:
    if _first_character(file) == "[":
        yield from _array_rows(file)
    elif levels is None:
        yield from json_line_rows(file)
    else:
        text = file.read()
        rows = _nested_rows(text, levels)
        yield from map(_undecoded_told, rows) if _UNDECODED.search(text) else rows


def _undecoded_told(row: SourceRow) -> SourceRow:
    undecoded = _UNDECODED.search(json.dumps(row.values, ensure_ascii=False))
    return SourceRow(row.where, {}, _NOT_UTF8) if undecoded else row


def _array_rows(file: TextIO) -> Iterator[SourceRow]:
    """Yield the rows of an array of objects, of which only some are in memory at a time."""
    decode = json.JSONDecoder().raw_decode
    text, problem, before, number, lines = "", "", _FIRST, 0, 0
    # A row that does not end in what was read is read anew with as much again.
    while len(text) <= _MOST_AT_ONCE and (part := file.read(max(_AT_ONCE, len(text)))):
        text += part
        place, problem = 0, 'a "," or "]" is missing'
        while found := before.match(text, place):
            if found["end"]:
                rest = itertools.chain([text[found.end() :]], iter(functools.partial(file.read, _AT_ONCE), ""))
                if any(map(str.strip, rest)):
                    raise ValueError(f"something follows the array of {number} rows")
                return
            try:
                values, end = decode(text, found.end())
            except json.JSONDecodeError as error:
                problem = f"{error.msg} (line {lines + error.lineno})"
                break
            except RecursionError:
                raise ValueError(f"row {number + 1}: nested too deeply") from None
            if end == len(text) and isinstance(values, int | float):  # of a number there may be more
                break
            number += 1
            wrong = None if isinstance(values, dict) else "is not a JSON object"
            wrong = _NOT_UTF8 if _UNDECODED.search(text, found.end(), end) else wrong
            yield SourceRow(f"row {number}", {} if wrong else values, wrong)
            place, before = end, _NEXT
        lines += text.count("\n", 0, place)
        text = text[place:]
    raise ValueError(f"row {number + 1}: {problem}")


def _nested_rows(text: str, levels: tuple[str, str, str]) -> Iterator[SourceRow]:
    number = 0
    try:
        content = json.loads(text)
        for outer, inners in content.items():
            for inner, leaves in inners.items():
                for leaf in leaves:
                    number += 1
                    yield SourceRow(f"row {number}", dict(zip(levels, (outer, inner, leaf), strict=True)))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (AttributeError, TypeError):
        raise ValueError(f"is not of the form {{{levels[0]}: {{{levels[1]}: [{levels[2]}]}}}}") from None


def _parquet_rows(path: Path) -> Iterator[SourceRow]:
    try:
        batches = dataset(path, format="parquet").to_batches(batch_size=1_000)  # a folder of files is one, too
        rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        for number, values in enumerate(rows, 1):
            yield SourceRow(f"row {number}", values)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path} as parquet: {error}") from error

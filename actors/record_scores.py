"""Records in, the same records with scores of models on them out; the models are actors of `actors.batches`."""

import itertools
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.batches import answer_batches, answer_here, parts_folder
from guardrail.records import SCHEMA, record_tables, write_table, write_tables
from guardrail.rows import text_problem
from guardrail.text import digest

#: Which records of a table are put to the models.
Wanted = Callable[[pa.Table], list[bool]]
#: Whether scores of 0.5 and more (True), less (False) or none at all (None) were given, and how often.
Verdicts = Counter[bool | None]


@dataclass(frozen=True)
class Scorer:
    """One model.

    Attributes:
        key: of its scores.
        actor: a class that `answer_batches` takes; from `text` and `response` it makes `score` (float64, or null).
        arguments: that it is built with.
        identity: what its answers hang on: those of a killed run are taken for its own where this is the same.
        is_service: it is asked from this process, for it is elsewhere: what keeps it from answering is said as it is.
    """

    key: str
    actor: type
    arguments: Sequence[Any]
    identity: str
    is_service: bool = False


def score_records(
    records: Path,
    scorers: Sequence[Scorer],
    output: Path,
    *,
    wanted: Wanted,
    batch_size: int,
    engines: int,
    num_cpus: float,
    num_gpus: float,
) -> dict[str, Verdicts]:
    """Write a record file anew, with a score of each model; where it gives none, there is none.

    A score takes the place of an earlier one of its key; order and all else stay. A call that is killed goes on where
    it was when it is made again; work lies in `OUTPUT.parts` until then, a folder that all nodes must share.

    Returns:
        By key, how the records were scored.

    Args:
        records: parquet file of records.
        scorers: who is asked, one after the other; no two of one key.
        output: parquet file to write, whole or not at all; it may be `records`.
        wanted: who is asked about; all others stay as they are.
        batch_size: records that a model is given at once; a killed run loses these.
        engines: of a model, in parallel.
        num_cpus, num_gpus: what one engine reserves.

    Raises:
        ValueError: the records cannot be read, one has no text, or an engine cannot start.
    """
    work = parts_folder(output)
    asked = _write_batches(_texts(records, wanted), batch_size, work / "asked")
    scores: dict[str, Iterator[float | None]] = {}
    for scorer in scorers:
        folder = work / digest(scorer.identity)
        if scorer.is_service:
            answered = answer_here(asked, folder, scorer.actor(*scorer.arguments))
        else:
            answered = answer_batches(
                asked, folder, scorer.actor, scorer.arguments, engines=engines, num_cpus=num_cpus, num_gpus=num_gpus
            )
        scores[scorer.key] = _scores(answered)
    verdicts: dict[str, Verdicts] = {key: Counter() for key in scores}
    schema = pq.read_schema(records)
    place = schema.get_field_index("scores")
    scored = _scored(records, wanted, scores, verdicts)
    write_tables(scored, schema.set(place, SCHEMA.field("scores")), output)
    shutil.rmtree(work, ignore_errors=True)
    return verdicts


def _texts(records: Path, wanted: Wanted) -> Iterator[tuple[str, str | None]]:
    """Yield what models are asked about: text and response, in the file's order."""
    row = 0
    for table in record_tables(records):
        columns = (table[name].to_pylist() for name in ("text", "response"))
        for text, response, is_wanted in zip(*columns, wanted(table), strict=True):
            row += 1
            if not is_wanted:
                continue
            if problem := text_problem(text):
                raise ValueError(f"{records}: row {row}: the text {problem}")
            yield text, response


def _write_batches(texts: Iterator[tuple[str, str | None]], size: int, folder: Path) -> list[Path]:
    """Write each batch of texts to `folder/KEY.parquet`, and return the files."""
    paths: list[Path] = []
    while batch := list(itertools.islice(texts, size)):
        # The number tells two batches of the same texts apart: one file is not to be answered by two engines at once.
        paths.append(folder / f"{digest(str(len(paths)), repr(batch))}.parquet")
        texts_of, responses = zip(*batch, strict=True)
        write_table(pa.table({"text": texts_of, "response": pa.array(responses, pa.string())}), paths[-1])
    return paths


def _scores(answered: Iterable[Path]) -> Iterator[float | None]:
    for path in answered:
        yield from pq.read_table(path)["score"].to_pylist()


def _scored(
    records: Path, wanted: Wanted, scores: Mapping[str, Iterator[float | None]], verdicts: Mapping[str, Verdicts]
) -> Iterator[pa.Table]:
    """Yield the records with their scores, and count these; both by key."""
    field = SCHEMA.field("scores")
    for table in record_tables(records):
        known = table["scores"].to_pylist()
        for place, is_wanted in enumerate(wanted(table)):
            if not is_wanted:
                continue
            found = dict(known[place] or ())
            for key, of_model in scores.items():
                score = next(of_model)
                verdicts[key][None if score is None else score >= 0.5] += 1
                found.pop(key, None)
                if score is not None:
                    found[key] = score
            known[place] = list(found.items())
        yield table.set_column(table.schema.get_field_index("scores"), field, pa.array(known, field.type))

"""Attempts on disk: every attack that was tried, as a record with what came of it; one file for each runner's share."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from guardrail.deobfuscation import plain
from guardrail.diversity import diversity
from guardrail.records import SCHEMA, Record, from_table, write_table, write_tables

#: What an attempt is beside a record. `scores` has "guard" and "fluency" only where the attempt came so far: the target
#: is asked about what passed the gate alone. Other scores, and the embedding, are of a disguised attack's plain text.
#: `iteration` is null where none that ended has it: rates of attempts leave such a success out (`left_successes`).
ATTEMPT_COLUMNS = pa.schema(
    [
        ("style", pa.string()),
        ("action", pa.string()),
        ("iteration", pa.int32()),
        ("valid", pa.bool_()),
        ("success", pa.bool_()),
        ("rejected", pa.string()),
        ("embedding", pa.list_(pa.float32())),
    ]
)
ATTEMPTS = pa.schema([*SCHEMA, *ATTEMPT_COLUMNS])
#: Why an attempt is not valid whose text the target does not take: it has judged nothing.
REFUSED = "refused by target"
UNANSWERED = "not answered by target"  #: the same of one that failed before, which ends the iteration


def attempts_table(
    goals: pa.Table, places: Sequence[int], columns: dict[str, Any], scores: dict[str, np.ndarray]
) -> pa.Table:
    """Return attempts as a table of `ATTEMPTS`, columns at a time: there are thousands of them in an iteration.

    Args:
        goals: table of `SCHEMA`.
        places: of each attempt's goal among them, [n].
        columns: what an attempt does not have from its goal; each a list of n, or one value for all.
        scores: of each kind [n], NaN where there is none.
    """
    table, count = goals.take(places), len(places)
    measured = np.stack(list(scores.values()), axis=1)
    found = np.isfinite(measured)
    own = columns | {
        "scores": pa.MapArray.from_arrays(
            np.concatenate([[0], found.sum(axis=1).cumsum()]).astype(np.int32),
            pa.array(np.broadcast_to(np.array(list(scores), dtype=object), found.shape)[found], pa.string()),
            pa.array(measured[found], pa.float64()),
        )
    }
    arrays = []
    for field in ATTEMPTS:
        values = own.get(field.name, table[field.name] if field.name in SCHEMA.names else None)
        if isinstance(values, pa.Array | pa.ChunkedArray):
            arrays.append(values)
        else:
            arrays.append(pa.array(values if isinstance(values, list) else [values] * count, type=field.type))
    return pa.Table.from_arrays(arrays, schema=ATTEMPTS)


def write_attempts(table: pa.Table, directory: Path, iteration: int, share: int) -> None:
    """Write a share of an iteration's attempts to the round's directory, whole or not at all."""
    write_table(table, directory / f"iteration-{iteration:04d}-{share:03d}.parquet")


def float_lists(matrix: np.ndarray) -> pa.Array:
    """Return the rows of a matrix as an Arrow array of lists, float32."""
    rows, width = matrix.shape
    return pa.ListArray.from_arrays(
        np.arange(rows + 1, dtype=np.int32) * width, pa.array(np.ascontiguousarray(matrix, dtype=np.float32).ravel())
    )


def read_attempts(directory: Path) -> pa.Table:
    """Return the attempts that the iterations of a round have written so far, a table of `ATTEMPTS`."""
    return pa.concat_tables([*_shares(directory), ATTEMPTS.empty_table()])


def read_successes(directory: Path, iteration: int | None = None) -> pa.Table:
    """Return the successes among them, or of one iteration, and never hold more of the others than a share."""
    return _successes(_shares(directory, iteration))


def _successes(shares: Iterable[pa.Table]) -> pa.Table:
    return pa.concat_tables([*(table.filter(table["success"]) for table in shares), ATTEMPTS.empty_table()])


def diversity_of(successes: pa.Table) -> dict[str, Any]:
    """Return how different attempts are from each other by what they say: a disguise makes no two of one."""
    flat = successes["embedding"].combine_chunks().flatten().to_numpy()
    embeddings = flat.reshape(len(successes), -1) if len(successes) else np.zeros((0, 1), np.float32)
    return diversity(successes["text"].to_pylist(), embeddings, said=plain)


def merge_attempts(directory: Path, output: Path) -> None:
    """Write the attempts of a round and `left_successes`, without embeddings, to one file, a share at a time."""
    schema = pa.schema([field for field in ATTEMPTS if field.name != "embedding"])
    tables = itertools.chain(_shares(directory), [left_successes(directory)])
    write_tables((table.select(schema.names) for table in tables), schema, output)


def _shares(directory: Path, iteration: int | None = None, kind: str = "iteration") -> Iterator[pa.Table]:
    of = "*" if iteration is None else f"{iteration:04d}-*"
    for file in sorted(directory.glob(f"{kind}-{of}.parquet")):
        yield pq.read_table(file, schema=ATTEMPTS)


def forget_attempts(directory: Path, first: int) -> None:
    """Count no more what an iteration that never ended has left, from iteration `first` on: it will be run again.

    It need not find the same again, with other runners or generated ahead: `left_successes` has what it found.
    """
    for file in sorted(directory.glob("iteration-*.parquet")):
        iteration = file.stem.split("-")[1]
        if int(iteration) >= first:
            earlier = len(list(directory.glob(f"left-{iteration}-*.parquet")))
            # One step, and never onto another: a kill loses no success and doubles none.
            file.rename(directory / f"left-{iteration}-{earlier:04d}.parquet")


def left_successes(directory: Path, iteration: int | None = None) -> pa.Table:
    """Return the successes that `forget_attempts` took out of the count, of all iterations or one, without `iteration`.

    Each text is there once, and not at all where the iterations that count have it as a success, too.
    """
    left = _successes(_shares(directory, iteration, "left"))
    if not len(left):
        return left
    places = {text: place for place, text in enumerate(left["text"].to_pylist())}
    again = set(read_successes(directory, iteration)["text"].to_pylist())
    left = left.take(pa.array([place for text, place in places.items() if text not in again], pa.int64()))
    column = ATTEMPTS.get_field_index("iteration")
    return left.set_column(column, ATTEMPTS.field(column), pa.nulls(len(left), pa.int32()))


def successes_of(attempts: pa.Table) -> list[Record]:
    """Return the successes among attempts, as records with a `style`, each text once."""
    return _records(attempts.filter(attempts["success"]))


def stored_attacks(rounds: Iterable[pa.Table]) -> list[Record]:
    """Return the successes among the attempts of some rounds, each text once, as `successes_of` has them."""
    found: dict[str, Record] = {}
    for attempts in rounds:
        for attack in successes_of(attempts):
            found.setdefault(attack["id"], attack)
    return list(found.values())


def kept_of(attempts: pa.Table) -> list[Record]:
    """Return the attempts that kept their label, whatever the target said, in the same form."""
    return _records(attempts.filter(attempts["valid"]))


def _records(attempts: pa.Table) -> list[Record]:
    found: dict[str, Record] = {}
    for record, style in zip(from_table(attempts), attempts["style"].to_pylist(), strict=True):
        found.setdefault(record["id"], {**record, "style": style})
    return list(found.values())

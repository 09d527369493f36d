"""The stages in order, on Ray Data: each writes what it saw, so that a killed run goes on at the stage it was in."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import ray.data

from guardrail.curation.balance import Balance
from guardrail.curation.config import CurationConfig
from guardrail.curation.contamination import Decontamination
from guardrail.curation.content import Canonical, LabelAgreement, Quality
from guardrail.curation.duplicates import ExactDuplicates, NearDuplicates
from guardrail.curation.fidelity import LabelFidelity
from guardrail.curation.stage import Judge, Stage
from guardrail.records import SCHEMA, from_table, write_table
from guardrail.text import digest

_VERDICT = [pa.field("reason", pa.string()), pa.field("evidence", pa.string())]
_NUMBERED = pa.schema([*SCHEMA, pa.field("row", pa.int64())])
_JUDGED = pa.schema([*_NUMBERED, *_VERDICT])
_LINEAGE = ("id", "parent_id", "seed_id", "source", "method", "unsafe")
LEDGER = pa.schema([*(SCHEMA.field(name) for name in _LINEAGE), pa.field("stage", pa.string()), *_VERDICT])


@dataclass(frozen=True)
class CurationReport:
    """What curation did: records kept, dropped by stage, and the funnel, stage by stage: in, kept, reasons."""

    kept: int
    dropped: dict[str, int]
    funnel: list[dict[str, Any]]


def stages(config: CurationConfig, evaluation: Mapping[str, Sequence[tuple[str, str]]]) -> list[Stage]:
    """Return the stages in the order they run."""
    return [
        Canonical(),
        ExactDuplicates(),
        NearDuplicates(config),
        Quality(config),
        LabelAgreement(),
        LabelFidelity(config),
        Decontamination(config, evaluation),
        Balance(config),
    ]


def curate(
    paths: Sequence[Path],
    out_dir: Path,
    config: CurationConfig,
    *,
    evaluation: Mapping[str, Sequence[tuple[str, str]]],
    num_cpus: float,
) -> CurationReport:
    """Curate record files; write `kept.parquet`, `ledger.parquet` and `funnel.json` into `out_dir`.

    A call that is killed goes on at the stage it was in when it is made again with the same arguments.

    Args:
        paths: parquet files of records.
        out_dir: where to write.
        config: what a record must satisfy.
        evaluation: by name of a set its (id, text) pairs, which no kept record may hold.
        num_cpus: what one task of Ray Data reserves.

    Raises:
        ValueError: a file is unreadable or no record file.
    """
    for path in paths:
        _check_schema(path)
    work = out_dir / "stages"
    identity = _identity(paths, config, evaluation)
    if _read_json(work / "identity.json") != identity:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        _number(paths, work / "input.parquet")
        _write_json(work / "identity.json", identity)
    source = work / "input.parquet"
    funnel = []
    for number, stage in enumerate(stages(config, evaluation), 1):
        folder = work / f"{number:02d}-{stage.name}"
        entry = _read_json(folder / "stage.json")
        if entry is None:
            shutil.rmtree(folder, ignore_errors=True)
            entry = _run(stage, source, folder, num_cpus)
        funnel.append(entry)
        source = folder
    kept = _kept(source).sort_by("id")
    write_table(kept, out_dir / "kept.parquet")
    write_table(_ledger(work, funnel), out_dir / "ledger.parquet")
    _write_json(out_dir / "funnel.json", funnel)
    shutil.rmtree(work)
    return CurationReport(kept.num_rows, {entry["stage"]: entry["in"] - entry["kept"] for entry in funnel}, funnel)


def _number(paths: Sequence[Path], target: Path) -> None:
    """Copy the records of all files into one, with their number: equal rows cannot be told apart without."""
    count = 0
    with pq.ParquetWriter(target, _NUMBERED) as writer:
        for path in paths:
            for batch in pq.ParquetFile(path).iter_batches(columns=SCHEMA.names):
                numbers = pa.array(range(count, count + batch.num_rows), type=pa.int64())
                table = pa.Table.from_batches([batch]).select(SCHEMA.names).append_column("row", numbers)
                writer.write_table(table.cast(_NUMBERED))
                count += batch.num_rows


def _run(stage: Stage, source: Path, folder: Path, num_cpus: float) -> dict[str, Any]:
    """Run one stage over the kept records of `source`; the folder's stage.json is written last."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    files = [str(file) for file in (sorted(source.glob("*.parquet")) if source.is_dir() else [source])]
    folder.mkdir(parents=True)
    if not any(pq.read_metadata(file).num_rows for file in files):
        write_table(_JUDGED.empty_table(), folder / "empty.parquet")
    else:
        records = ray.data.read_parquet(files, num_cpus=num_cpus)
        records = records.map_batches(_only_kept, batch_format="pyarrow", zero_copy_batch=True, num_cpus=num_cpus)

        def survey(ask: Callable[[pa.Table], pa.Table]) -> Iterable[dict[str, Any]]:
            # num_cpus everywhere: a task of Ray Data wants a whole CPU by default, which may never be free.
            answers = records.map_batches(ask, batch_format="pyarrow", zero_copy_batch=True, num_cpus=num_cpus)
            return answers.iter_rows()

        judge = stage.prepare(survey)

        def judged_batch(batch: pa.Table) -> pa.Table:
            return _with_verdicts(judge, batch)

        judged = records.map_batches(judged_batch, batch_format="pyarrow", zero_copy_batch=True, num_cpus=num_cpus)
        judged.write_parquet(str(folder), ray_remote_args={"num_cpus": num_cpus})
    reasons = _read(folder, ["reason"])["reason"].value_counts().to_pylist()
    counts = {entry["values"]: entry["counts"] for entry in reasons}
    kept = counts.pop(None, 0)
    entry = {
        "stage": stage.name,
        "in": kept + sum(counts.values()),
        "kept": kept,
        "reasons": dict(sorted(counts.items())),
    }
    _write_json(folder / "stage.json", entry)
    return entry


def _with_verdicts(judge: Judge, batch: pa.Table) -> pa.Table:
    """Return a batch with a judge's verdicts, as the columns reason and evidence."""
    records = batch.select(_NUMBERED.names).cast(_NUMBERED)
    numbers = records["row"].to_pylist()
    drops = judge([{**r, "row": number} for r, number in zip(from_table(records), numbers, strict=True)])
    verdicts = [[drop and drop.reason for drop in drops], [drop and drop.evidence for drop in drops]]
    for field, values in zip(_VERDICT, verdicts, strict=True):
        records = records.append_column(field, pa.array(values, type=pa.string()))
    return records


def _only_kept(batch: pa.Table) -> pa.Table:
    if "reason" in batch.column_names:
        batch = batch.filter(pa.compute.is_null(batch["reason"]))
    return batch.select(_NUMBERED.names)


def _read(folder: Path, columns: Sequence[str]) -> pa.Table:
    files = [str(file) for file in sorted(folder.glob("*.parquet"))]
    return pyarrow.dataset.dataset(files, schema=_JUDGED).to_table(columns=list(columns))


def _kept(folder: Path) -> pa.Table:
    """Return the records that a stage kept."""
    return _only_kept(_read(folder, _JUDGED.names)).select(SCHEMA.names).cast(SCHEMA)


def _ledger(work: Path, funnel: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return one row for each dropped record, by stage and id."""
    tables = [LEDGER.empty_table()]
    for number, entry in enumerate(funnel, 1):
        table = _read(work / f"{number:02d}-{entry['stage']}", [*_LINEAGE, "reason", "evidence"])
        table = table.filter(pa.compute.is_valid(table["reason"])).sort_by("id")
        stage = pa.array([entry["stage"]] * table.num_rows, type=pa.string())
        tables.append(table.append_column("stage", stage).select(LEDGER.names).cast(LEDGER))
    return pa.concat_tables(tables)


def _check_schema(path: Path) -> None:
    try:
        names = pq.read_schema(path).names
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"cannot read records from {path}: {error}") from error
    missing = [name for name in SCHEMA.names if name not in names]
    if missing:
        raise ValueError(f"{path} is no record file: it lacks the columns {', '.join(missing)}")


def _identity(
    paths: Sequence[Path], config: CurationConfig, evaluation: Mapping[str, Sequence[tuple[str, str]]]
) -> dict[str, Any]:
    """Return what stages of an earlier call must have been made from to count as done."""
    contents = []
    for path in paths:
        with path.open("rb") as file:
            contents.append(hashlib.file_digest(file, "sha256").hexdigest())
    texts = [part for name, items in sorted(evaluation.items()) for item in items for part in (name, *item)]
    return {"inputs": contents, "config": config.model_dump(), "evaluation": digest(*texts)}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _write_json(path: Path, value: Any) -> None:
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(partial, path)

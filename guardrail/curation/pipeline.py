"""The stages in order, on Ray Data: each writes what it saw, so that a killed run goes on at the stage it was in."""

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from guardrail.curation.balance import Balance
from guardrail.curation.config import CurationConfig
from guardrail.curation.contamination import Decontamination, EvaluationTexts
from guardrail.curation.content import Canonical, LabelAgreement, Quality
from guardrail.curation.duplicates import ExactDuplicates, NearDuplicates
from guardrail.curation.facts import with_facts
from guardrail.curation.fidelity import LabelFidelity
from guardrail.curation.folders import (
    INPUT_SCHEMA,
    JUDGED_SCHEMA,
    Folder,
    only_kept,
    with_verdicts,
    write_json,
    write_numbered,
)
from guardrail.curation.stage import Stage
from guardrail.records import SCHEMA, check_records, write_table
from guardrail.text import digest

_LINEAGE = ("id", "parent_id", "seed_id", "source", "method", "unsafe")
LEDGER = pa.schema(
    [
        *(SCHEMA.field(name) for name in _LINEAGE),
        pa.field("stage", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("evidence", pa.string()),
    ]
)


@dataclass(frozen=True)
class CurationReport:
    """What curation did: records kept, dropped by stage, and the funnel, stage by stage: in, kept, reasons."""

    kept: int
    dropped: dict[str, int]
    funnel: list[dict[str, Any]]


def stages(config: CurationConfig, evaluation: EvaluationTexts) -> list[Stage]:
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
    evaluation: EvaluationTexts,
    num_cpus: float = 0.5,
) -> CurationReport:
    """Curate record files; write `kept.parquet`, `ledger.parquet` and `funnel.json` into `out_dir`.

    A call that is killed goes on at the stage it was in when it is made again; where inputs or settings have changed
    since, at the first stage that they bear upon. What is kept does not hang on the order of the inputs.

    Args:
        paths: parquet files of records.
        out_dir: where to write; on a cluster, a folder that all nodes share.
        config: what a record must satisfy.
        evaluation: by name of a set its (id, text) pairs, which no kept record may hold.
        num_cpus: what one task of Ray Data reserves.

    Raises:
        ValueError: a file is unreadable or no record file; the message names file and column.
    """
    for path in paths:
        check_records(path)
    work = out_dir.resolve() / "stages"
    # Facts are computed from these two settings on the way into the first stage.
    key = digest(*_content_digests(paths), json.dumps(config.model_dump(include={"shingle", "permutations"})))
    inputs = Folder(work / "00-input", INPUT_SCHEMA)
    if inputs.manifest(key) is None:
        inputs.start()
        inputs.finish(key, records=write_numbered(paths, inputs.path))
    source, funnel, folders = inputs, [], []
    for number, stage in enumerate(stages(config, evaluation), 1):
        key = digest(key, stage.name, json.dumps(stage.settings, sort_keys=True))
        folder = Folder(work / f"{number:02d}-{stage.name}", JUDGED_SCHEMA)
        entry = folder.manifest(key)
        if entry is None:
            folder.start()
            _run(stage, inputs, source, folder, config, num_cpus)
            entry = folder.finish(key, **_counted(stage, folder))
        funnel.append({name: entry[name] for name in ("stage", "in", "kept", "reasons")})
        folders.append(folder)
        source = folder
    kept = source.write_kept(out_dir / "kept.parquet")
    write_table(_ledger(funnel, folders), out_dir / "ledger.parquet")
    write_json(out_dir / "funnel.json", funnel)
    shutil.rmtree(work)
    return CurationReport(kept, {entry["stage"]: entry["in"] - entry["kept"] for entry in funnel}, funnel)


@dataclass(frozen=True)
class _Survey:
    """What a stage learns of the records: columns of the files of the stage before, and of the input."""

    of_kept: Folder
    of_inputs: Folder
    batches: Callable[[Callable[[pa.Table], pa.Table]], ray.data.Dataset]

    def kept(self, columns: Sequence[str]) -> Iterable[dict[str, Any]]:
        return self.of_kept.rows(columns)

    def computed(self, function: Callable[[pa.Table], pa.Table]) -> Iterable[dict[str, Any]]:
        return self.batches(function).iter_rows()

    def inputs(self, columns: Sequence[str]) -> Iterable[dict[str, Any]]:
        return self.of_inputs.rows(columns)


def _run(stage: Stage, inputs: Folder, source: Folder, target: Folder, config: CurationConfig, num_cpus: float) -> None:
    """Judge the kept records of `source` into `target`."""
    files = source.files()
    if not files:
        return
    prepare = functools.partial(with_facts, config) if source is inputs else only_kept
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False

    def batches(function: Callable[[pa.Table], pa.Table]) -> ray.data.Dataset:
        # Ray's own parquet readers list files and fetch their metadata in tasks that want a whole CPU, which may never
        # be free, and that take a second or two for each stage. So files are what is distributed, and read here.
        paths = ray.data.from_items([{"path": file} for file in files], override_num_blocks=len(files))
        step = functools.partial(_of_files, prepare, function)
        return paths.map_batches(step, batch_size=1, batch_format="pyarrow", num_cpus=num_cpus)

    with ray.data.DataContext.current(context):
        judge = stage.prepare(_Survey(source, inputs, batches))
        judged = batches(functools.partial(with_verdicts, judge))
        judged.write_parquet(str(target.path), ray_remote_args={"num_cpus": num_cpus})


def _of_files(
    prepare: Callable[[pa.Table], pa.Table], function: Callable[[pa.Table], pa.Table], files: pa.Table
) -> pa.Table:
    return pa.concat_tables(function(prepare(pq.read_table(path))) for path in files["path"].to_pylist())


def _counted(stage: Stage, folder: Folder) -> dict[str, Any]:
    """Return a stage's entry in the funnel."""
    counts = folder.verdicts()
    total, kept = sum(counts.values()), counts.pop(None, 0)
    reasons = {str(reason): count for reason, count in counts.items()}
    return {"stage": stage.name, "in": total, "kept": kept, "reasons": dict(sorted(reasons.items()))}


def _ledger(funnel: Sequence[Mapping[str, Any]], folders: Sequence[Folder]) -> pa.Table:
    """Return one row for each dropped record, by stage and id."""
    tables = [LEDGER.empty_table()]
    for entry, folder in zip(funnel, folders, strict=True):
        table = folder.dropped([*_LINEAGE, "reason", "evidence"])
        # Records of one id follow each other in an order that is not the inputs'.
        table = table.sort_by([(name, "ascending") for name in ("id", "method", "source", "parent_id", "unsafe")])
        stage = pa.array([entry["stage"]] * table.num_rows, type=pa.string())
        tables.append(table.append_column("stage", stage).select(LEDGER.names).cast(LEDGER))
    return pa.concat_tables(tables)


def _content_digests(paths: Sequence[Path]) -> list[str]:
    digests = []
    for path in paths:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests

"""The stages in order, on Ray Data: each writes its verdicts, so that a killed run goes on at the stage it was in."""

import dataclasses
import functools
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from guardrail.blocks import cluster_cpus
from guardrail.code_digest import code_digest, content_digests
from guardrail.curation.balance import Balance
from guardrail.curation.config import CurationConfig
from guardrail.curation.contamination import Decontamination, EvaluationTexts
from guardrail.curation.content import Canonical, LabelAgreement
from guardrail.curation.duplicates import ExactDuplicates, NearDuplicates
from guardrail.curation.facts import SETTINGS
from guardrail.curation.fidelity import LabelFidelity
from guardrail.curation.folders import (
    Folder,
    Part,
    merge,
    orphans,
    remove_partials,
    write_facts,
    write_json,
    write_sorted,
    write_verdicts,
)
from guardrail.curation.intake import intake_entry, take_in
from guardrail.curation.language import Language
from guardrail.curation.noise import LabelNoise
from guardrail.curation.policy import SafetyPolicy
from guardrail.curation.quality import Quality
from guardrail.curation.semantic import SemanticDuplicates
from guardrail.curation.stage import Stage
from guardrail.curation.survey import ClusterSurvey, over_parts
from guardrail.curation.votes import JudgesVote
from guardrail.embedding import STATIC_PREFIX
from guardrail.models import model_state
from guardrail.records import SCHEMA, check_records, write_tables
from guardrail.text import digest

_CODE = code_digest(Path(__file__).parents[1])  # when it was loaded: an update may come while it runs
_MODELS = ("gibberish_model", "semantic_encoder", "embedder")  # settings that name one
_FEWEST_ROWS, _MOST_ROWS = 500, 20_000  # of a task
_WRITTEN = ("kept.parquet", "ledger.parquet", "funnel.json", "set_aside.parquet")
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
    """What curation did.

    Attributes:
        kept: records.
        dropped: records, by stage.
        funnel: in, kept and reasons of intake and stages.
        unchecked: kept records that grew from seeds that are not among the inputs, whose labels no stage could compare
            with those of their seeds.
    """

    kept: int
    dropped: dict[str, int]
    funnel: list[dict[str, Any]]
    unchecked: int


def stages(config: CurationConfig, evaluation: EvaluationTexts) -> list[Stage]:
    """Return the stages in the order they run."""
    return [
        Canonical(),
        ExactDuplicates(),
        NearDuplicates(config),
        Decontamination(config, evaluation),  # before what would take a disguised text for gibberish
        Language(config),
        Quality(config),
        SemanticDuplicates(config),  # knows no order: words in none would be duplicates, and might be what stays
        LabelAgreement(),
        LabelFidelity(config),
        JudgesVote(),
        LabelNoise(config),
        SafetyPolicy(config),
        Balance(config),
    ]


def curate(
    paths: Sequence[Path],
    out_dir: Path,
    config: CurationConfig,
    evaluation: EvaluationTexts,
    num_cpus: float = 0.5,
    tell: Callable[[Mapping[str, Any], bool], None] | None = None,
) -> CurationReport:
    """Curate record files; write kept.parquet, ledger.parquet, funnel.json and set_aside.parquet into `out_dir`.

    A call that is killed goes on at the stage it was in when it is made again; where settings have changed since, at
    the first stage that they bear upon; where inputs have, or this package, at the first. What is kept does not hang on
    the order of the inputs, but where a score lies within rounding of its threshold.

    Args:
        paths: parquet files of records.
        out_dir: where to write; on a cluster, a folder that all nodes share.
        config: what a record must satisfy.
        evaluation: by name of a set its (id, text) pairs, which no kept record may hold.
        num_cpus: what one task reserves.
        tell: is told each stage's entry in the funnel once it is done, and whether an earlier call had done it.

    Raises:
        ValueError: a file is unreadable or no record file; the message names file and column.
    """
    for path in paths:
        check_records(path)
    remove_partials(out_dir, _WRITTEN)
    work = out_dir.resolve() / "stages"
    # A source that is trusted decides what is taken in, and with it all that follows.
    key = digest(_CODE, json.dumps(sorted(config.trusted_sources)), *content_digests(paths))
    parts, intake = _prepared(paths, out_dir.resolve(), key, config, num_cpus)
    funnel = [_told(intake)]
    judged: list[list[Part]] = []
    for number, stage in enumerate(stages(config, evaluation), 1):
        key = stage_key(key, stage)
        folder = Folder(work / f"{number:02d}-{stage.name}")
        entry = folder.manifest(key)
        done_before = entry is not None
        if entry is None:
            folder.start()
            left = parts if funnel[-1]["kept"] else []
            entry = folder.finish(key, **_run(stage, left, folder, num_cpus))
        funnel.append(_told(entry))
        if tell:
            tell(funnel[-1], done_before)
        parts = [dataclasses.replace(part, verdicts=folder.path / part.records.name) for part in parts]
        judged.append(parts if entry["in"] else [])
    _write_kept(judged[-1], out_dir, work, num_cpus)
    write_tables(_ledger(funnel[1:], judged), LEDGER, out_dir / "ledger.parquet")
    write_json(out_dir / "funnel.json", funnel)
    unchecked = orphans(judged[-1])
    for each in work.iterdir():
        Folder(each).remove()
    shutil.rmtree(work)
    dropped = {entry["stage"]: entry["in"] - entry["kept"] for entry in funnel[1:]}
    return CurationReport(funnel[-1]["kept"], dropped, funnel, unchecked)


def stage_key(before: str, stage: Stage) -> str:
    """Return the digest of all that a stage's verdicts hang on: what the stage before did, settings, models' files."""
    names = [stage.settings[name] for name in _MODELS if stage.settings.get(name)]
    models = [model_state(name.removeprefix(STATIC_PREFIX)) for name in names]
    return digest(before, stage.name, json.dumps(stage.settings, sort_keys=True), *models)


def _prepared(
    paths: Sequence[Path], out_dir: Path, key: str, config: CurationConfig, num_cpus: float
) -> tuple[list[Part], dict[str, Any]]:
    """Return the numbered input with its facts, written if need be, and its manifest, an entry of the funnel."""
    inputs, known = (Folder(out_dir / "stages" / name) for name in ("00-input", "00-facts"))
    entry = inputs.manifest(key)
    if entry is None:
        inputs.start()
        rows = _rows_per_file(sum(pq.read_metadata(path).num_rows for path in paths))
        aside = out_dir / "set_aside.parquet"
        taken_in = take_in(paths, inputs.path, aside, rows, config.trusted_sources)
        entry = inputs.finish(key, **intake_entry(aside, taken_in))
    parts = [Part(file, known.path / file.name) for file in sorted(inputs.path.glob("*.parquet"))]
    key = digest(key, json.dumps(config.model_dump(include=set(SETTINGS))))
    if known.manifest(key) is None:
        known.start()
        over_parts(functools.partial(write_facts, config), parts, num_cpus)
        known.finish(key)
    return parts, entry


def _told(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the funnel tells of intake or a stage."""
    return {name: manifest[name] for name in ("stage", "in", "kept", "reasons")}


def _rows_per_file(records: int) -> int:
    """Return how many records a task gets: of few records all CPUs get some, of many no task holds very many."""
    share = math.ceil(records / cluster_cpus())
    return min(max(share, _FEWEST_ROWS), _MOST_ROWS)


def _run(stage: Stage, parts: Sequence[Part], folder: Folder, num_cpus: float) -> dict[str, Any]:
    """Write a stage's verdicts on the records that are left, and return its entry in the funnel."""
    reasons: Counter[str | None] = Counter()
    if parts:
        judge = stage.prepare(ClusterSurvey(parts, folder.scratch, num_cpus))
        for counts in over_parts(functools.partial(write_verdicts, judge, folder.path), parts, num_cpus):
            reasons.update(counts)
    total, kept = reasons.total(), reasons.pop(None, 0)
    return {"stage": stage.name, "in": total, "kept": kept, "reasons": dict(sorted(reasons.items()))}


def _write_kept(parts: Sequence[Part], out_dir: Path, work: Path, num_cpus: float) -> None:
    """Write the kept records by id."""
    folder = Folder(work / "kept")
    folder.start()
    merge(over_parts(functools.partial(write_sorted, folder.path), parts, num_cpus), out_dir / "kept.parquet")


def _ledger(funnel: Sequence[Mapping[str, Any]], judged: Sequence[Sequence[Part]]) -> Iterator[pa.Table]:
    """Yield the rows of the dropped records of each stage, by id."""
    for entry, parts in zip(funnel, judged, strict=True):
        if not parts:
            continue
        table = pa.concat_tables(part.dropped(_LINEAGE) for part in parts)
        # Records of one id follow each other in an order that is not the inputs'.
        table = table.sort_by([(name, "ascending") for name in ("id", "method", "source", "parent_id", "unsafe")])
        stage = pa.array([entry["stage"]] * table.num_rows, type=pa.string())
        yield table.append_column("stage", stage).select(LEDGER.names).cast(LEDGER)

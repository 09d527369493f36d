"""Curate records: what is kept, and for each dropped record the stage, the reason and the evidence.

python jobs/curate.py --input embedded grown.parquet beavertails-train --output curated/ [--evaluation xstest ...]
python jobs/curate.py --explain ID --output curated/

Inputs are parquet files of records, CSV or JSON-lines files of labelled rows, public sets by name, "embedded": the
seeds that rayguard ships, and "embedded-texts": what it ships for guards alone. The second form tells the story of one
record of what the first wrote: its lineage, the stages it passed, where and why it was dropped.

Exit status: 0 if all went well; 1 if a file cannot be read or has no records or labelled rows, which the message names,
or if `--evaluation all` could not load a set, which was not kept out then; 2 for a mistake in the settings; 3 if rows
were set aside because they fit no record: OUTPUT/set_aside.parquet has file, row and reason of each, and all the others
were curated.
"""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pydantic import Field

from cluster.connect import connect
from cluster.resources import plan_for_cluster
from guardrail.cards import KEPT_OUT
from guardrail.curation import CurationConfig, CurationReport, curate
from guardrail.curation.folders import write_json
from guardrail.curation.intake import intake_entry
from guardrail.curation.story import story
from guardrail.dataset_registry import registry
from guardrail.evaluation_items import EvaluationItem
from guardrail.evaluation_sets import evaluation_texts, load_available_evaluations, raise_missing
from guardrail.files import write_text
from jobs.curation_inputs import CurationInput, tell_of_set_aside
from jobs.settings import ClusterSettings, SeedSettings, load, save_beside
from jobs.terminal import orderly_end, show_funnel

ROWS_SET_ASIDE = 3


class CurateSettings(ClusterSettings, SeedSettings):
    """Settings of the curation."""

    input: list[str] = Field(
        [],
        description="files of records or labelled rows, public sets to train on by name; embedded, embedded-texts: "
        "the shipped seeds, and what is shipped for guards alone",
    )
    at_most: dict[str, int] = Field(
        {}, description="records of a label that are taken of a public set, by its name: of its categories equally many"
    )
    output: Path = Field(
        description="folder of kept.parquet, ledger.parquet, funnel.json, set_aside.parquet, kept_out.json"
    )
    explain: str | None = Field(None, description="id of a record whose story to tell, of what is in the output folder")
    evaluation: list[str] = Field(
        [], description="evaluation sets to keep out, by name (all: every registered one), or files"
    )
    data_dir: Path | None = Field(None, description="local copies of public data sets")
    curation: CurationConfig = CurationConfig()


def _curate(settings: CurateSettings) -> None:
    if not settings.input:
        raise ValueError("nothing to curate: --input takes files of records and names of public sets")
    if idle := sorted(settings.at_most.keys() - ({*settings.input} & registry().keys())):
        raise ValueError(f"at_most names {', '.join(idle)}, which --input does not name or which is no public set")
    evaluation, missing = load_available_evaluations(settings.evaluation, settings.data_dir)
    with contextlib.ExitStack() as made:
        report = _curated(settings, _inputs(settings, made), evaluation)
    save_beside(settings, settings.output)
    show_funnel(report)
    if count := report.funnel[0]["in"] - report.funnel[0]["kept"]:
        print(f"{count} rows set aside: see {settings.output / 'set_aside.parquet'}", file=sys.stderr)
    if report.unchecked:
        print(
            f"{report.unchecked} records grew from seeds that are not among the inputs; their labels were not checked: "
            "add the seeds to the inputs",
            file=sys.stderr,
        )
    raise_missing(missing, "kept out")


def _inputs(settings: CurateSettings, made: contextlib.ExitStack) -> list[CurationInput]:
    """Return the inputs; what is made of them is removed at the end."""
    output = settings.output.resolve()
    inputs = []
    for number, name in enumerate(settings.input, 1):
        path = output.with_name(f"{output.name}.{number}-{Path(name).stem}.parquet")
        inputs.append(CurationInput.of(name, path, settings.data_dir, settings.at_most.get(name), settings.seed))
        made.callback(inputs[-1].remove)
    return inputs


def _curated(
    settings: CurateSettings, inputs: Sequence[CurationInput], evaluation: Mapping[str, Sequence[EvaluationItem]]
) -> CurationReport:
    if not settings.evaluation:
        print("no --evaluation: texts that guards are measured on are not kept out", file=sys.stderr)
    (settings.output / KEPT_OUT).unlink(missing_ok=True)  # of other records
    with connect(address=settings.cluster.address):
        plan = plan_for_cluster(num_env_runners=0, num_learners=0, num_guard_workers=0)
        report = curate(
            [each.path for each in inputs],
            settings.output,
            settings.curation,
            evaluation=evaluation_texts(evaluation),
            num_cpus=plan.data_task_cpus,
            tell=_tell_of_stage,
        )
    kept_out = {name: len(items) for name, items in evaluation.items()}
    write_text(settings.output / KEPT_OUT, json.dumps(kept_out, indent=2) + "\n")
    set_aside = settings.output / "set_aside.parquet"
    tell_of_set_aside(inputs, set_aside)
    # Curation has not seen the rows that made no record.
    funnel = [intake_entry(set_aside, report.funnel[0]["kept"]), *report.funnel[1:]]
    write_json(settings.output / "funnel.json", funnel)
    return dataclasses.replace(report, funnel=funnel)


def _tell_of_stage(entry: Mapping[str, Any], done_before: bool) -> None:
    before = ", as it was before" if done_before else ""
    print(f"{entry['stage']}: {entry['kept']:,} of {entry['in']:,} kept{before}", file=sys.stderr)


def main(arguments: Sequence[str]) -> None:
    """Write kept records and ledger, or tell one record's story."""
    settings = load(CurateSettings, arguments, __doc__)
    with orderly_end(settings.output):
        if settings.explain is not None:
            print("\n".join(story(settings.explain, settings.output)))
            return
        _curate(settings)
    if pq.read_metadata(settings.output / "set_aside.parquet").num_rows:
        raise SystemExit(ROWS_SET_ASIDE)


if __name__ == "__main__":
    main(sys.argv[1:])

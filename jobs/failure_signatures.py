"""Measure where guards of this kind are known to fail, on a run that has ended: RUN/failure_signatures.json.

python jobs/failure_signatures.py RUN_DIR [--signatures styles categories origin languages drift] [--data SET ...]

styles, categories: guards trained without the attacks of a style, or the records of a category, that training has most
of; they lie in RUN/failure_signatures/, and one that is there is not trained again. origin: text that the attacker
wrote beside the seeds, which stand for human text. languages: other languages beside English, in seeds never trained on
and in the sets of --data; a text's language is that of its tag "language:CODE", else what it looks like. drift: the
guard of each round against the attacks of each.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from rich.console import Console
from rich.table import Table

from actors.attempts import kept_of
from cluster.connect import connect
from cluster.resources import plan_for_cluster
from guardrail.evaluation_items import EvaluationItem
from guardrail.evaluation_sets import load_evaluations
from guardrail.failure_signatures import (
    FinishedRun,
    Row,
    drift,
    languages,
    left_out_categories,
    left_out_styles,
    origin,
)
from guardrail.files import write_text
from guardrail.guard_card import GuardCard
from guardrail.metrics import share_text
from guardrail.records import Record, make_record, read_records
from guardrail.seeds import HELD_OUT, VALIDATION
from jobs.run import Manifest, round_directory, run_directory
from jobs.settings import LoopSettings
from jobs.terminal import orderly_end, terminal

SIGNATURES = ("styles", "categories", "origin", "languages", "drift")
_LANGUAGE_TAG = "language:"


def read_run(directory: Path, settings: LoopSettings) -> FinishedRun:
    """Return what a run has left.

    Raises:
        ValueError: the directory holds no run, or one that has not ended.
    """
    manifest = Manifest.read(directory)
    manifest.harden(directory)
    folders = [round_directory(directory, index) for index in range(settings.rounds + 1)]
    return FinishedRun(
        config=settings.training,
        seed=settings.seed,
        guards=[folder / "guard" for folder in folders],
        training=[read_records(folder / "training.parquet") for folder in folders],
        promoted=[json.loads((folder / "metrics.json").read_text())["promoted"] for folder in folders],
        attacks=[[], *(kept_of(pq.read_table(folder / "attacks.parquet")) for folder in folders[1:])],
        validation=read_records(directory / "seeds" / f"{VALIDATION}.parquet"),
        held_out=read_records(directory / "seeds" / f"{HELD_OUT}.parquet"),
        directory=directory / "failure_signatures",
    )


def as_record(name: str, item: EvaluationItem) -> Record:
    """Return an item of an evaluation set as a record, with the language of its tag, if it has one."""
    tags = (tag.removeprefix(_LANGUAGE_TAG) for tag in item.tags or () if tag.startswith(_LANGUAGE_TAG))
    return make_record(item.text, unsafe=item.unsafe, source=name, response=item.response, language=next(tags, None))


def main(arguments: Sequence[str]) -> None:
    """Measure the signatures that the command line names, and write and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--signatures", nargs="+", choices=SIGNATURES, default=SIGNATURES, metavar="NAME")
    parser.add_argument("--left-out", type=int, default=2, help="styles, and categories, to leave out, each by itself")
    parser.add_argument("--data", nargs="+", default=[], help="evaluation sets by name, or files: languages")
    parser.add_argument("--data-dir", type=Path, help="local copies of public data sets")
    options = parser.parse_args(arguments)
    console, directory = terminal(), run_directory(options.run_dir)
    with orderly_end(directory):
        if options.left_out < 1:
            raise ValueError(f"--left-out is {options.left_out}; leave out at least one style and one category")
        config = directory / "config.yaml"
        if not config.is_file():
            raise ValueError(f"{directory} holds no run: there is no {config}")
        settings = LoopSettings(**yaml.safe_load(config.read_text()))
        run = read_run(directory, settings)
        sets = load_evaluations(options.data, options.data_dir)
        further = [as_record(name, item) for name, items in sets.items() for item in items]
        trains = bool(settings.training.workers) and not {"styles", "categories"}.isdisjoint(options.signatures)
        with connect(address=settings.cluster.address) if trains else nullcontext():
            resources = _resources(settings) if trains else {}
            measures: Mapping[str, Callable[[], Iterable[Row]]] = {
                "styles": partial(left_out_styles, run, options.left_out, resources),
                "categories": partial(left_out_categories, run, options.left_out, resources),
                "origin": partial(origin, run),
                "languages": partial(languages, run, further),
                "drift": partial(drift, run),
            }
            found: dict[str, list[Row]] = {}
            for name in options.signatures:
                found[name] = list(measures[name]())
                write(directory / "failure_signatures.json", GuardCard.read(run.guards[run.in_use()]).digest, found)
        show(console, found)
        console.print(
            f"python jobs/report.py {options.run_dir} puts them into its page", highlight=False, soft_wrap=True
        )


def _resources(settings: LoopSettings) -> dict[str, float]:
    plan = plan_for_cluster(num_env_runners=0, num_learners=0, num_guard_workers=settings.training.workers)
    return {"cpus_per_worker": plan.guard_worker_cpus, "gpus_per_worker": plan.guard_worker_gpus}


def write(path: Path, guard: str, found: Mapping[str, list[Row]]) -> None:
    """Write the rows by signature; those of other signatures stay if they are of the same guard (its digest)."""
    before: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    kept = before["signatures"] if before.get("guard") == guard else {}
    write_text(path, json.dumps({"guard": guard, "signatures": {**kept, **found}}, indent=2) + "\n")


def show(console: Console, found: Mapping[str, list[Row]]) -> None:
    """Print the rows, a table for each signature."""
    for signature, rows in found.items():
        if not rows:
            console.print(f"{signature}: the run has no such text that its guard was trained on", highlight=False)
            continue
        table = Table(title=signature)
        for column in ("", "texts", "metric", "n", "share (95%)", "beside", "n", "share (95%)", "note"):
            table.add_column(column, justify="right" if column in ("n", "share (95%)") else "left")
        for each in rows:
            beside = each["beside"]
            table.add_row(
                each["name"], each["what"], each["metric"].replace("_", " "), *_figures(each),
                beside["what"], *_figures(beside), each["note"],
            )  # fmt: skip
        console.print(table)


def _figures(measured: Mapping[str, Any]) -> tuple[str, str]:
    interval = measured["interval"]
    shown = share_text(measured["value"]) + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else "")
    return str(measured["n"]), shown


if __name__ == "__main__":
    main(sys.argv[1:])

"""Train a guard on records, calibrated on a part of them that nothing it trained on grew from.

python jobs/train_guard.py --records kept.parquet --output guards/mine [--training.epochs 3 ...]

With `--evaluate xstest ...` it is measured, too, `--transforms all` included, and its model card has the figures.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import yaml
from pydantic import Field, model_validator

from cluster.connect import connect
from cluster.resources import plan_for_cluster
from guardrail.cards import KEPT_OUT, MODEL_CARD, Provenance, named_in_cards, write_cards
from guardrail.evaluation import evaluate_set
from guardrail.evaluation_sets import load_evaluations
from guardrail.fitted_on import fitted_on
from guardrail.guard import Guard
from guardrail.guard_card import GuardCard
from guardrail.records import Record, read_records, write_records
from guardrail.robustness import add_robustness
from guardrail.seeds import TRAIN, VALIDATION, split_by_seed
from guardrail.text import digest
from guardrail.training import TrainingConfig, fine_tune
from jobs.settings import ClusterSettings, EvaluationSettings, load, save_beside, to_yaml
from jobs.terminal import orderly_end, show_metrics, show_transforms, training_shown


class TrainGuardSettings(ClusterSettings, EvaluationSettings):
    """Settings of the training."""

    records: Path = Field(description="parquet file of records")
    at_most: int | None = Field(None, ge=1, description="records to take, drawn by lot; null: all")
    output: Path = Field(description="guard directory to write")
    version: str = Field("guard", description="name that guard.json gives")
    validation: float = Field(
        0.1, gt=0, lt=0.5, description="share of the seeds, with all that grew of them, held back"
    )
    data_dir: Path | None = Field(
        None,
        description="local copies of public sets: records of evaluation sets must not be held back to set thresholds",
    )
    evaluate: list[str] = Field([], description="evaluation sets, by name or file, that the model card tells of")
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _transforms_have_sets(self) -> Self:
        if self.transforms and not self.evaluate:
            raise ValueError("transforms write requests of evaluation sets anew; name some with --evaluate")
        return self


def main(arguments: Sequence[str]) -> None:
    """Write a guard directory."""
    settings = load(TrainGuardSettings, arguments, __doc__)
    data = settings.output.with_name(f".{settings.output.name}.records.parquet")
    with orderly_end(settings.output):
        records = _drawn(read_records(settings.records), settings.at_most, settings.seed)
        parts = split_by_seed(records, validation=settings.validation, held_out=0.0)
        held_back = parts[VALIDATION]
        # Refused before hours are spent.
        fitted_on("validation split", [r["id"] for r in held_back], [r["source"] for r in held_back], settings.data_dir)
        sets = load_evaluations(settings.evaluate, settings.data_dir)
        settings.output.parent.mkdir(parents=True, exist_ok=True)
        write_records(parts[TRAIN], data)
        try:
            with connect(address=settings.cluster.address), training_shown() as show_training:
                plan = plan_for_cluster(num_env_runners=0, num_learners=0, num_guard_workers=settings.training.workers)
                card = fine_tune(
                    settings.training,
                    data=data,
                    validation=held_back,
                    output=settings.output,
                    version=settings.version,
                    seed=settings.seed,
                    cpus_per_worker=plan.guard_worker_cpus,
                    gpus_per_worker=plan.guard_worker_gpus,
                    tell=show_training,
                    board=settings.output.with_name(f"{settings.output.name}.tensorboard"),
                )
        finally:
            data.unlink()
        save_beside(settings, settings.output)
        if not (settings.output / MODEL_CARD).exists():  # of a guard that was trained before it has figures
            write_cards(settings.output, _provenance(settings, card, parts[TRAIN], {}))
    if truncated := card.training["truncated"]:
        print(f"{truncated} texts are longer than a window, and of these the first was trained on", file=sys.stderr)
    if card.training["out_of_time"]:
        wanted = f"{card.training['epochs']:.2f} of {settings.training.epochs} passes over the data"
        print(
            f"the training's {settings.training.minutes:g} minutes (training.minutes) were enough for {wanted}",
            file=sys.stderr,
        )
    print(f"guard {card.version} (digest {card.digest}, threshold {card.thresholds['unsafe']:.3f}): {settings.output}")
    if sets:
        with orderly_end(settings.output):
            guard = Guard.from_pretrained(settings.output)
            metrics: dict[str, dict[str, Any]] = {}
            for name, items in sets.items():
                metrics[name] = evaluate_set(guard, items, seed=settings.seed)
                write_cards(settings.output, _provenance(settings, card, parts[TRAIN], metrics))
            show_metrics(metrics)
            if settings.transforms:
                add_robustness(
                    metrics, guard, sets, settings.transforms, sample=settings.transform_sample, seed=settings.seed
                )
                write_cards(settings.output, _provenance(settings, card, parts[TRAIN], metrics))
                show_transforms(metrics, settings.transform_sample)


def _drawn(records: list[Record], most: int | None, seed: int) -> list[Record]:
    drawn = np.random.default_rng(seed).permutation(len(records))[:most]
    return [records[place] for place in np.sort(drawn)]


def _provenance(
    settings: TrainGuardSettings, card: GuardCard, records: Sequence[Record], metrics: Mapping[str, Mapping[str, Any]]
) -> Provenance:
    """Return what the cards tell of the guard; of the curation, what lies beside the records it kept.

    `metrics` are those of evaluation sets, by name, beside the validation split's.
    """
    scored, folder = _scored_by(settings.records.resolve())
    ledger, curation = folder / "ledger.parquet", folder.with_name(f"{folder.name}.config.yaml")
    is_curated, kept_out = ledger.is_file() and curation.is_file(), folder / KEPT_OUT
    told = card.training["validation"]
    measured = {VALIDATION: {key: told[key] for key in told if key != "categories"}}  # of the decision
    if told["cross_fitted"]:
        measured = {f"{VALIDATION}, each half by the threshold of the other": told["cross_fitted"]}
    return Provenance(
        records=records,
        metrics={**measured, **metrics},
        commands=[
            *([f"python jobs/curate.py --config {named_in_cards(curation)}"] if is_curated else []),
            *scored,
            f"python jobs/train_guard.py --config {named_in_cards(settings.output)}.config.yaml",
        ],
        config_digest=digest(to_yaml(settings)),
        ledgers=[ledger] if is_curated else [],
        kept_out=json.loads(kept_out.read_text()) if is_curated and kept_out.is_file() else None,
    )


def _scored_by(records: Path) -> tuple[list[str], Path]:
    """Return the commands that gave records their scores, in order, and the folder of those without."""
    path = records.with_name(f"{records.name}.config.yaml")
    settings = yaml.safe_load(path.read_text()) if path.is_file() else {}
    for key, job in (("judges", "judge"), ("teachers", "score")):
        if key in settings and Path(settings["input"]).resolve() != records:
            before, folder = _scored_by(Path(settings["input"]).resolve())
            return [*before, f"python jobs/{job}.py --config {named_in_cards(path)}"], folder
    return [], records.parent


if __name__ == "__main__":
    main(sys.argv[1:])

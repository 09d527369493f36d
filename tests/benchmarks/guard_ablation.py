"""Which options of guard training help: each by itself beside the default, on the same records.

python -m tests.benchmarks.guard_ablation --data-dir DIR [--data RECORDS.parquet] [--records 4000]
    [--random-seeds 0 1 2] [--epochs 4] [--variants NAME ...] [--teachers NAME ...] [--dir DIR]

For each random seed a guard is trained with the default settings, and one with each variant of them, on a sample of the
records (the embedded seeds unless a file is given; all that grew from a seed is drawn together, and a part of the seeds
sets thresholds). Measured are AUPRC, which hangs on no threshold, and F1 at the guard's own, as means over the public
sets that have both labels, and the mean AUPRC of categories by their own scores, over all categories of these sets. The
difference from the default is of guards of the same seed, with its standard error.
`--teachers` names scores in the records, and adds the variant that learns from them. What is measured is not measured
again, and a killed training goes on at its step.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from guardrail.evaluation import evaluate_set
from guardrail.evaluation_items import EvaluationItem
from guardrail.evaluation_sets import load_evaluations
from guardrail.files import write_text
from guardrail.guard import Guard
from guardrail.models import cache_dir
from guardrail.records import Record, read_records, write_records
from guardrail.seeds import TRAIN, VALIDATION, embedded_seeds, split_by_seed
from guardrail.text import digest
from guardrail.training import fine_tune
from guardrail.training_config import TrainingConfig
from tests.benchmarks.common import EVALUATION

DEFAULT = "default"
VARIANTS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "no categories": {"category_weight": 0.0},
    "categories twice": {"category_weight": 2.0},
    "label smoothing": {"label_smoothing": 0.05},
    "layer-wise rates": {"layer_decay": 0.85},
    "weight average": {"average": 0.99},
    "share of the base": {"start_share": 0.2},
    "adversarial": {"adversarial": 0.05},
    "balance": {"balance": 0.5},
    "augmentation": {"augment": 0.15},
    "lower 3 layers frozen": {"freeze_layers": 3},
    "embeddings trained": {"freeze_embeddings": False},
    "LoRA": {"lora_rank": 16, "learning_rate": 1e-3},
    "early stopping": {"epochs": 6, "patience": 1},
}
MEASURED = ("auprc", "f1", "categories")  #: the last: AUPRC of these
_HELD_BACK = 0.15  # share of the seeds that sets thresholds


def sample(records: Sequence[Record], count: int) -> list[Record]:
    """Return about so many records: all that grew from seeds that are drawn at random."""
    families: dict[str, list[Record]] = {}
    for record in records:
        families.setdefault(record["seed_id"], []).append(record)
    drawn: list[Record] = []
    for place in np.random.default_rng(0).permutation(len(families)):
        if len(drawn) < count:
            drawn += families[sorted(families)[place]]
    return drawn


def measured(
    config: TrainingConfig,
    parts: dict[str, list[Record]],
    sets: dict[str, list[EvaluationItem]],
    directory: Path,
    seed: int,
) -> dict[str, float]:
    """Return the means over the sets of a guard trained so, which is trained and measured unless it was."""
    key = digest(
        config.model_dump_json(), *sorted(sets), *MEASURED, *(f"{r['id']} {r['unsafe']}" for r in parts[TRAIN])
    )
    found = directory / f"{key}-{seed}.json"
    if not found.exists():
        directory.mkdir(parents=True, exist_ok=True)
        data, output = found.with_suffix(".parquet"), found.with_suffix("")
        write_records(parts[TRAIN], data)
        fine_tune(config, data=data, validation=parts[VALIDATION], output=output, version="ablation", seed=seed)
        guard = Guard.from_pretrained(output)
        metrics = [evaluate_set(guard, items, seed=seed) for items in sets.values()]
        row = {name: float(np.mean([each[name] for each in metrics])) for name in ("auprc", "f1")}
        ranked = [of["auprc"] for each in metrics for of in each["categories"].values() if of["auprc"] is not None]
        write_text(found, json.dumps(row | {"categories": float(np.mean(ranked))}))
        shutil.rmtree(output)
        data.unlink()
    return dict(json.loads(found.read_text()))


def main(arguments: Sequence[str]) -> None:
    """Train and measure the variants, and print the table and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="local copies of the public sets")
    parser.add_argument("--data", type=Path, help="parquet of records; None: the embedded seeds")
    parser.add_argument("--records", type=int, default=4000, help="at most so many, and the rest of a seed's")
    parser.add_argument("--random-seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=TrainingConfig().epochs)
    parser.add_argument("--base", default=TrainingConfig().base)
    parser.add_argument("--variants", nargs="+", choices=[name for name in VARIANTS if name != DEFAULT])
    parser.add_argument("--teachers", nargs="+", default=[], help="names in the records' scores")
    parser.add_argument("--dir", type=Path, default=cache_dir() / "benchmarks" / "guard_ablation")
    options = parser.parse_args(arguments)
    sets = load_evaluations(list(EVALUATION), options.data_dir)
    sets = {name: items for name, items in sets.items() if len({item.unsafe for item in items}) == 2}
    records = sample(read_records(options.data) if options.data else embedded_seeds(), options.records)
    parts = split_by_seed(records, validation=_HELD_BACK, held_out=0.0)
    common = {"base": options.base, "epochs": options.epochs, "workers": 0}
    variants = {name: VARIANTS[name] for name in (DEFAULT, *(options.variants or list(VARIANTS)[1:]))}
    if options.teachers:
        variants["distillation"] = {"teachers": tuple(options.teachers)}
    scores: dict[str, dict[str, list[float]]] = {name: {key: [] for key in MEASURED} for name in variants}
    for seed in options.random_seeds:
        for name, changed in variants.items():
            row = measured(TrainingConfig(**(common | changed)), parts, sets, options.dir, seed)
            for key in MEASURED:
                scores[name][key].append(row[key])
            print(f"{seed} {name}: {row}", file=sys.stderr, flush=True)
    print(f"{len(parts[TRAIN])} records, {len(options.random_seeds)} guards each; means over {', '.join(sets)}\n")
    print("| variant | settings | AUPRC | F1 | AUPRC of categories | AUPRC over the default |")
    print("|---|---|---:|---:|---:|---:|")
    for name, row in scores.items():
        told = ", ".join(f"`{key} {value}`" for key, value in variants[name].items())
        gain = np.array(row["auprc"]) - np.array(scores[DEFAULT]["auprc"])
        error = f" ± {gain.std(ddof=1) / len(gain) ** 0.5:.3f}" if len(gain) > 1 else ""
        over = "" if name == DEFAULT else f"{gain.mean():+.3f}{error}"
        means = " | ".join(f"{np.mean(row[key]):.3f}" for key in MEASURED)
        print(f"| {name} | {told} | {means} | {over} |")
    print(json.dumps({"records": len(parts[TRAIN]), "sets": list(sets), "variants": scores}))


if __name__ == "__main__":
    main(sys.argv[1:])

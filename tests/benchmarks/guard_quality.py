"""How well the guard of `make guard` does on the public sets, plain and written anew by transforms.

python -m tests.benchmarks.guard_quality --data-dir DIR [--random-seeds 0 1 2] [--sample 150] [--dir DIR]
python -m tests.benchmarks.guard_quality --data-dir DIR --guards GUARD ...

Data are gathered once by the preset of `make guard`, then a guard is trained on them for each random seed, unless they
are there already; or guards that exist are measured. F1, recall and false positives are at the guard's own threshold,
figures are means over the guards. Transforms write `--sample` requests of each label, of the sets of `TRANSFORMED`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from guardrail.evaluation import evaluate_set
from guardrail.evaluation_sets import load_evaluations
from guardrail.guard import Guard
from guardrail.models import cache_dir
from guardrail.robustness import robustness
from guardrail.transforms import TRANSFORMS
from jobs import curate, train_guard
from tests.benchmarks.common import EVALUATION

PRESETS = Path(__file__).parents[2] / "jobs" / "configs" / "guard"
SHOWN = ("f1", "precision", "recall", "fpr", "auprc", "recall_at_1pct_fpr", "ece")
TRANSFORMED = ("xstest", "mitre-frr", "strongreject")


def trained(directory: Path, data_dir: Path, seed: int) -> Path:
    """Return the guard of the preset and a random seed, trained unless it is there."""
    data, guard = directory / "data", directory / f"guard-{seed}"
    sets = ["--data-dir", str(data_dir.resolve())]
    if not (data / "kept.parquet").exists():
        try:
            curate.main(["--config", str(PRESETS / "curate.yaml"), *sets, "--output", str(data)])
        except SystemExit as end:
            if end.code != curate.ROWS_SET_ASIDE:
                raise
    if not guard.exists():
        records = ["--records", str(data / "kept.parquet"), "--output", str(guard)]
        here = ["--evaluate", "[]", "--transforms", "[]"]  # it is measured by `main`
        train_guard.main(["--config", str(PRESETS / "train.yaml"), *records, *sets, *here, "--seed", str(seed)])
    return guard


def transform_figures(guard: Guard, sets: dict[str, Any], sample: int) -> dict[str, dict[str, float | None]]:
    """Return recall ratio and rise of false positives of each transform, on the requests of `TRANSFORMED` together."""
    items = [item for name in TRANSFORMED for item in sets[name]]
    found = robustness(guard, items, list(TRANSFORMS), sample=sample, seed=0)
    return {name: {key: figures[key] for key in ("recall_ratio", "benign_fpr_delta")} for name, figures in found}


def mean(values: Sequence[Any]) -> Any:
    """Return the mean of figures, of each key where they have keys; None where one of them is not defined."""
    if isinstance(values[0], dict):
        return {key: mean([each[key] for each in values]) for key in values[0]}
    return None if any(each is None for each in values) else round(float(np.mean(values)), 4)


def main(arguments: Sequence[str]) -> None:
    """Train, measure, and print the tables and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="local copies of the public sets")
    parser.add_argument("--random-seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--guards", type=Path, nargs="+", help="measure these, train none")
    parser.add_argument("--sample", type=int, default=150, help="requests of a label that transforms write")
    parser.add_argument("--dir", type=Path, default=cache_dir() / "benchmarks" / "guard_quality")
    options = parser.parse_args(arguments)
    sets = load_evaluations(list(EVALUATION), options.data_dir)
    measured, disguised = [], []
    for path in options.guards or [trained(options.dir, options.data_dir, seed) for seed in options.random_seeds]:
        guard = Guard.from_pretrained(path)
        found = {name: evaluate_set(guard, items) for name, items in sets.items()}
        measured.append({name: {key: metrics[key] for key in SHOWN} for name, metrics in found.items()})
        disguised.append(transform_figures(guard, sets, options.sample))
        print(f"{path}: {json.dumps(measured[-1])}", file=sys.stderr, flush=True)
    figures = {"sets": mean(measured), "transforms": mean(disguised), "guards": len(measured)}
    print(f"{'set':20} {' '.join(f'{key:>18}' for key in SHOWN)}")
    for name, metrics in figures["sets"].items():
        print(f"{name:20} {' '.join(_cell(metrics[key]) for key in SHOWN)}")
    print(f"{'transform':20} {'recall_ratio':>18} {'benign_fpr_delta':>18}")
    for name, metrics in figures["transforms"].items():
        print(f"{name:20} {_cell(metrics['recall_ratio'])} {_cell(metrics['benign_fpr_delta'])}")
    print(json.dumps(figures))


def _cell(value: float | None) -> str:
    return f"{'-' if value is None else f'{value:.3f}':>18}"


if __name__ == "__main__":
    main(sys.argv[1:])

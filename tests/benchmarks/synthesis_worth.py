"""Whether synthetic data earns its place: guards trained on the seeds, and on the seeds with what is made of them.

python -m tests.benchmarks.synthesis_worth --data-dir DIR [--seeds 400] [--random-seeds 0 1 2] [--model NAME]
    [--dir DIR]

The default strategies are asked once for each of N embedded training seeds; seeds and answers are curated together. For
each random seed, one guard is trained on the seeds that are kept, one on them and the synthetic records. Both are
measured on the public sets that have both labels, by the area under the precision-recall curve: it hangs on no
threshold. A killed run goes on where it was.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from actors.synthesizer import synthesize
from cluster.connect import connect
from guardrail.curation import CurationConfig, curate
from guardrail.evaluation import evaluate_set
from guardrail.evaluation_sets import evaluation_texts, load_evaluations
from guardrail.guard import Guard
from guardrail.models import cache_dir
from guardrail.records import Record, read_records, write_records
from guardrail.seeds import TRAIN, VALIDATION, embedded_seeds, split_by_seed
from guardrail.synthesis import SynthesisConfig
from guardrail.text import digest
from guardrail.training_config import TrainingConfig
from tests.benchmarks.common import BOTH_LABELS, EVALUATION, plan, train


def main(arguments: Sequence[str]) -> None:
    """Make, curate, train, and print the table and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="local copies of the public sets")
    parser.add_argument("--seeds", type=int, default=400, help="embedded seeds that are grown")
    parser.add_argument("--random-seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--model", default=SynthesisConfig().model, help="bundled name, directory or hub id")
    parser.add_argument("--dir", type=Path, default=cache_dir() / "benchmarks" / "synthesis_worth")
    options = parser.parse_args(arguments)
    config = SynthesisConfig(model=options.model, max_seeds=options.seeds)
    sets = load_evaluations(list(EVALUATION), options.data_dir)
    parts = split_by_seed(embedded_seeds(), validation=0.2, held_out=0.0)
    auprc: dict[str, list[list[float]]] = {"seeds": [], "seeds and synthetic": []}
    # Other settings, seeds and evaluation texts make other data.
    texts = sorted(text for listed in evaluation_texts(sets).values() for _, text in listed)
    made_of = [*(f"{r['id']} {r['unsafe']}" for r in parts[TRAIN] + parts[VALIDATION]), *texts]
    settings = (each.model_dump_json() for each in (config, CurationConfig(), TrainingConfig()))
    directory = options.dir / digest(*settings, *made_of)
    directory.mkdir(parents=True, exist_ok=True)
    with connect():
        kept = made(parts[TRAIN], config, directory, evaluation_texts(sets))
        human = [record for record in kept if record["method"] == "seed"]
        print(f"kept: {dict(Counter(record['method'] for record in kept))}", flush=True)
        for seed in options.random_seeds:
            for name, records in zip(auprc, (human, kept), strict=True):
                output = directory / f"guard-{name.replace(' ', '-')}-{seed}"
                guard = Guard.from_pretrained(train(records, parts[VALIDATION], output, seed=seed))
                auprc[name].append([evaluate_set(guard, sets[each])["auprc"] for each in BOTH_LABELS])
                print(f"{seed} {name}: {', '.join(f'{v:.3f}' for v in auprc[name][-1])}", flush=True)
    print(f"{'AUPRC':22} {' '.join(f'{each:>20}' for each in (*BOTH_LABELS, 'mean'))}")
    for name, rows in auprc.items():
        table = np.column_stack([rows, np.mean(rows, axis=1)])
        cells = [
            f"{mean:.3f} +- {spread:.3f}" for mean, spread in zip(table.mean(axis=0), table.std(axis=0), strict=True)
        ]
        print(f"{name:22} {' '.join(f'{cell:>20}' for cell in cells)}")
    print(json.dumps({"sets": BOTH_LABELS, "auprc": auprc, "mean": {k: float(np.mean(v)) for k, v in auprc.items()}}))


def made(
    seeds: Sequence[Record],
    config: SynthesisConfig,
    directory: Path,
    held_out: dict[str, list[tuple[str, str]]],
) -> list[Record]:
    """Return what curation leaves of the seeds and the synthetic records made of them, made unless they are there."""
    paths = [directory / "seeds.parquet", directory / "synthetic.parquet"]
    kept = directory / "curated" / "kept.parquet"
    write_records(seeds, paths[0])
    if not paths[1].exists():
        cpus, gpus = plan().env_runner_cpus, plan().env_runner_gpus
        synthesize(seeds, config, paths[1], seed=0, num_cpus=cpus, num_gpus=gpus)
    if not kept.exists():
        curate(paths, directory / "curated", CurationConfig(), held_out)
    return read_records(kept)


if __name__ == "__main__":
    main(sys.argv[1:])

"""How good synthetic requests are beside the human seeds they grew from, strategy by strategy.

python -m tests.benchmarks.synthesis_quality [--seeds 60] [--model NAME] [--input FILE] [--no-curation] [--speed]

Every strategy (translations aside, where the model is a bundled one) is asked once for each of N embedded seeds, spread
over the topics; or records are read from a file. For each strategy, and for those seeds themselves:

- records: how many there are.
- parent_similarity: mean cosine to the parent (MiniLM).
- label_consistency: share whose label is that of a classifier of the embedding (logistic regression, fitted to the
  seeds). It is out of fold: whoever judges a record has seen neither its seed nor, so, what that seed says of it. The
  row of the seeds tells how far the classifier itself can be trusted.
- self_bleu: likeness to each other (arXiv 1802.01886); depends on the number of records.
- distinct_1, distinct_2: different words, and pairs of words, over all of them (arXiv 1510.03055).
- unique_clusters: of the embeddings, at cosine 0.7.
- category_coverage: share of the categories of the grown seeds (harmless: one more) that some record grew from.
- kept_share: share that survives curation, together with all seeds and all strategies.

--speed also prints `tokens_vs_bare_vllm`: tokens per second of an actor of ours (from requests to written records) over
those of bare `LLM.generate` on the same prompts and the same engine; the two alternate.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich.table import Table
from sklearn.linear_model import LogisticRegression

from cluster.connect import connect
from cluster.resources import plan_for_cluster
from guardrail.curation import CurationConfig, curate
from guardrail.diversity import self_bleu, unique_clusters
from guardrail.embedding import Embedder
from guardrail.models import BUNDLED_PREFIX, resolve
from guardrail.records import Record, read_records, write_records, write_table
from guardrail.seeds import embedded_seeds
from guardrail.synthesis import STRATEGIES, SynthesisConfig, requests
from guardrail.text import words
from jobs.terminal import terminal

SEEDS = "human seeds"
FOLDS = 5
ROUNDS = 3  # of the comparison of speed
FIGURES = (
    "parent_similarity",
    "label_consistency",
    "self_bleu",
    "distinct_1",
    "distinct_2",
    "unique_clusters",
    "category_coverage",
    "kept_share",
)


def settings(model: str, seeds: int) -> SynthesisConfig:
    """Return what is asked for: every strategy that the model may be able to do, once for each seed."""
    able = [s.name for s in STRATEGIES if s.language is None or not model.startswith(BUNDLED_PREFIX)]
    # An e-mail is longer than what the default settings ask for.
    return SynthesisConfig(model=model, strategies=dict.fromkeys(able, 1), max_seeds=seeds, max_new_tokens=64)


def measured(
    records: Sequence[Record], seeds: Sequence[Record], kept: set[tuple[str, str]] | None
) -> dict[str, dict[str, Any]]:
    """Return the figures of each method of `records`, and of the seeds that they grew from.

    Args:
        records: synthetic ones; their parents must be among the seeds.
        seeds: all there are: the classifier learns from them.
        kept: (method, id) of what survived curation; None: not measured.
    """
    by_id = {record["id"]: record for record in seeds}
    parents = {record["parent_id"] for record in records}
    if strangers := parents - by_id.keys():
        raise ValueError(f"{len(strangers)} parents are no seeds, neither of the file nor embedded")
    everything = [*seeds, *records]
    vectors = Embedder(resolve("bundled:all-minilm-l6-v2")).encode([record["text"] for record in everything])
    of_seed = {record["id"]: vectors[i] for i, record in enumerate(seeds)}
    agrees = out_of_fold_agreement(everything, vectors, len(seeds))
    places: dict[str, list[int]] = {SEEDS: [i for i, seed in enumerate(seeds) if seed["id"] in parents]}
    for i, record in enumerate(records, len(seeds)):
        places.setdefault(record["method"], []).append(i)
    return {
        name: {
            "records": len(chosen),
            "parent_similarity": None
            if name == SEEDS
            else float(np.mean([vectors[i] @ of_seed[everything[i]["parent_id"]] for i in chosen])),
            "label_consistency": float(np.mean(agrees[chosen])),
            "self_bleu": self_bleu([everything[i]["text"] for i in chosen]),
            "distinct_1": distinct([everything[i]["text"] for i in chosen], 1),
            "distinct_2": distinct([everything[i]["text"] for i in chosen], 2),
            "unique_clusters": unique_clusters(vectors[chosen]),
            "category_coverage": coverage(
                [by_id[everything[i]["seed_id"]] for i in chosen], [by_id[i] for i in parents]
            ),
            "kept_share": None
            if kept is None
            # Each id once: of equal records one survives at most.
            else len(kept & {(everything[i]["method"], everything[i]["id"]) for i in chosen}) / len(chosen),
        }
        for name, chosen in places.items()
    }


def out_of_fold_agreement(everything: Sequence[Record], vectors: np.ndarray, seeds: int) -> np.ndarray:
    """Return whether a classifier that has not seen a record's seed gives it the record's label, bool [n].

    Args:
        everything: n records, the first `seeds` of them seeds.
        vectors: their embeddings [n, d].
        seeds: how many the classifiers learn from.
    """
    labels = np.array([record["unsafe"] for record in everything])
    folds = np.array([int(record["seed_id"], 16) % FOLDS for record in everything])
    agrees = np.zeros(len(everything), dtype=bool)
    for fold in range(FOLDS):
        seen = np.flatnonzero(folds[:seeds] != fold)
        asked = folds == fold
        if asked.any():
            classifier = LogisticRegression(max_iter=1000, C=10.0).fit(vectors[seen], labels[seen])
            agrees[asked] = classifier.predict(vectors[asked]) == labels[asked]
    return agrees


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Return different n-grams of words over all n-grams, in (0, 1]; None where there are none."""
    grams = [gram for text in texts for gram in zip(*(words(text)[i:] for i in range(n)), strict=False)]
    return len(set(grams)) / len(grams) if grams else None


def coverage(seeds: Sequence[Record], wanted: Sequence[Record]) -> float:
    """Return the share of the wanted seeds' categories that these seeds have; harmless counts as one."""
    found, of_all = ({key for s in some for key in s["categories"] or ["harmless"]} for some in (seeds, wanted))
    return len(found & of_all) / len(of_all)


def curated(
    records: Sequence[Record], seeds: Sequence[Record], directory: Path, num_cpus: float
) -> set[tuple[str, str]]:
    """Return (method, id) of what survives curation."""
    paths = [directory / "seeds.parquet", directory / "records.parquet"]
    for path, some in zip(paths, (seeds, records), strict=True):
        write_records(some, path)
    curate(paths, directory / "curation", CurationConfig(), {}, num_cpus)
    return {(r["method"], r["id"]) for r in read_records(directory / "curation" / "kept.parquet")}


def tokens_vs_bare_vllm(seeds: Sequence[Record], config: SynthesisConfig, directory: Path) -> float:
    """Return tokens per second of an actor's work over those of vLLM alone, the median of rounds."""
    from vllm import SamplingParams

    from actors.synthesizer import Synthesizer, write_batches

    keys = write_batches(requests(seeds, config, 0), config, 0, directory)
    batches = [(key, pq.read_table(directory / f"{key}.parquet")) for key in keys]
    asked = [pair for _, b in batches for pair in zip(b["strategy"].to_pylist(), b["prompts"].to_pylist(), strict=True)]
    prompts = [prompt for _, several in asked for prompt in several]
    longest = [config.max_tokens_of(strategy) for strategy, several in asked for _ in several]
    actor = Synthesizer(config.model_dump(), num_gpus=0)
    generate, tokens = actor.engine.generate, Counter[str]()

    def counted(*arguments: Any, **options: Any) -> Any:
        groups = generate(*arguments, **options)
        tokens["ours"] += sum(len(completion.token_ids) for group in groups for completion in group)
        return groups

    def ours() -> None:
        for key, batch in batches:
            write_table(actor.answers(batch, key), directory / "answers.parquet")

    def bare() -> None:
        parameters = [SamplingParams(max_tokens=n, temperature=config.temperature, stop=["\n"]) for n in longest]
        actor.engine.llm.reset_prefix_cache()
        outputs = actor.engine.llm.generate(prompts, parameters, use_tqdm=False)
        tokens["bare"] += sum(len(sample.token_ids) for output in outputs for sample in output.outputs)

    actor.engine.generate = counted  # type: ignore[method-assign]
    rates: dict[str, list[float]] = {"ours": [], "bare": []}
    for round_ in range(ROUNDS + 1):  # the first warms up
        for name, work in (("ours", ours), ("bare", bare)) if round_ % 2 else (("bare", bare), ("ours", ours)):
            tokens[name], begun = 0, time.monotonic()
            work()
            rates[name].append(tokens[name] / (time.monotonic() - begun))
    for name, each in rates.items():
        print(f"{name}: {', '.join(f'{rate:.0f}' for rate in each[1:])} tokens/s, {len(prompts)} prompts")
    return float(np.median(np.array(rates["ours"][1:]) / np.array(rates["bare"][1:])))


def show(figures: dict[str, dict[str, Any]]) -> None:
    """Print the table."""
    table = Table()
    for column in ("strategy", "records", *FIGURES):
        table.add_column(
            column.replace("_", " "), justify="left" if column == "strategy" else "right", no_wrap=column == "strategy"
        )
    for name, row in figures.items():
        cells = [row[column] for column in FIGURES]
        shown = ["-" if c is None else str(c) if isinstance(c, int) else f"{c:.2f}" for c in cells]
        table.add_row(name, str(row["records"]), *shown)
    terminal().print(table)


def main() -> None:
    """Make or read the records, measure them, print the table and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=60, help="embedded seeds that are grown")
    parser.add_argument("--model", default=SynthesisConfig().model, help="bundled name, directory or hub id")
    parser.add_argument(
        "--input", type=Path, help="parquet file of records to measure instead; seeds may be among them"
    )
    parser.add_argument("--no-curation", action="store_true", help="leave kept_share out, which needs a cluster")
    parser.add_argument("--speed", action="store_true", help="compare with bare vLLM too")
    arguments = parser.parse_args()
    given = read_records(arguments.input) if arguments.input else []
    records = [record for record in given if record["method"] != "seed"]
    human = {record["id"]: record for record in [*embedded_seeds(), *given] if record["method"] == "seed"}
    seeds = list(human.values())
    config = settings(arguments.model, arguments.seeds)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        kept: set[tuple[str, str]] | None = None
        if not arguments.input or not arguments.no_curation:
            with connect():
                plan = plan_for_cluster(num_env_runners=1, num_learners=0, num_guard_workers=0)
                if not arguments.input:
                    from actors.synthesizer import synthesize, totals

                    output = directory / "made.parquet"
                    cpus, gpus = plan.env_runner_cpus, plan.env_runner_gpus
                    count, dropped = totals(synthesize(seeds, config, output, seed=0, num_cpus=cpus, num_gpus=gpus)[0])
                    records = read_records(output)
                    print(f"{count} records; answers dropped: {dropped}")
                if not arguments.no_curation:
                    kept = curated(records, seeds, directory, plan.data_task_cpus)
        figures: dict[str, Any] = measured(records, seeds, kept)
        show(figures)
        if arguments.speed:
            figures["tokens_vs_bare_vllm"] = tokens_vs_bare_vllm(seeds, config, directory / "speed")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

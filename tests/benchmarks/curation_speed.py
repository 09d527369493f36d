"""What curation costs: near duplicates beside datatrove, semantic ones beside semhash, a record of many beside few.

python -m tests.benchmarks.curation_speed [--records 100000] [--many 1000000] [--rounds 3] [--parts near semantic cost]

The records are drawn, not public: 8 to 40 of the 20,000 most frequent English words, with Zipf's weights; 10% are
copies with a word put in or exchanged, 5% exact copies. Near duplicates: our stage with what goes before it
(signatures, keys, components, verdicts) beside the four steps of datatrove's MinHash pipeline, in turn, with as many
workers, on the same files, with the same parameters: 5-word shingles, 14 bands of 8 hashes. Where the two cannot be
alike, datatrove has the lighter load:

- it splits words at spaces, where it would take spaCy by default;
- it reads nothing but text and id, and does not write what it keeps;
- it joins all candidates, where ours compares their signatures.

Cost of a record: the whole of `curate` but the stages that load models, on a cluster of its own for each size.

Needs datatrove, which is no requirement of this project.
"""

import argparse
import contextlib
import functools
import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from cluster.connect import connect
from guardrail.curation import CurationConfig, curate, pipeline
from guardrail.curation.contamination import EvaluationTexts
from guardrail.curation.duplicates import NearDuplicates
from guardrail.curation.folders import Folder, Part, write_facts, write_verdicts
from guardrail.curation.intake import take_in
from guardrail.curation.stage import Stage
from guardrail.curation.survey import ClusterSurvey, over_parts
from guardrail.models import resolve
from guardrail.records import SCHEMA, record_id

try:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.utils.logging import logger
    from datatrove.utils.word_tokenizers import WordTokenizer
except ImportError as error:
    sys.exit(
        f"the benchmark needs datatrove ({error}): pip install --no-deps datatrove==0.10.1 "
        "dill multiprocess humanize loguru regex"
    )

PARTS = ("near", "semantic", "cost")
WORKERS = 2
BANDS, SLOTS = 14, 8
CONFIG = CurationConfig(shingle=5, shingle_unit="words", permutations=BANDS * SLOTS, near_duplicate=0.8)
WITH_MODELS = {"fidelity", "semantic", "noise"}
_VOCABULARY = 20_000
_ROWS = 20_000  # of a file


def draw_texts(count: int, seed: int) -> list[str]:
    """Return texts of which every tenth is nearly another one and every twentieth equals one."""
    random = np.random.default_rng(seed)
    # The bundled encoder's vocabulary, most frequent words first.
    vocabulary = (Path(resolve(CONFIG.embedder)) / "vocab.txt").read_text(encoding="utf-8").split("\n")
    words = [word for word in vocabulary if word.isascii() and word.isalpha() and len(word) > 1][:_VOCABULARY]
    weights = 1 / np.arange(1, _VOCABULARY + 1)
    lengths = random.integers(8, 41, count)
    drawn = random.choice(_VOCABULARY, lengths.sum(), p=weights / weights.sum())
    texts: list[str] = []
    start = 0
    for number, length in enumerate(lengths):
        text = [words[i] for i in drawn[start : start + length]]
        start += length
        if number and number % 20 in (3, 13):
            text = texts[random.integers(number)].split(" ")
            place = random.integers(len(text))
            text[place : place + random.integers(2)] = [words[random.integers(_VOCABULARY)]]
        elif number and number % 20 == 7:
            text = texts[random.integers(number)].split(" ")
        texts.append(" ".join(text))
    return texts


def write_files(texts: Sequence[str], folder: Path) -> list[Path]:
    """Write texts as records: 5% seeds, the others made from them by one method; all of one label."""
    folder.mkdir()
    ids = [record_id(text) for text in texts]
    seeds = max(1, len(texts) // 20)
    paths = []
    for start in range(0, len(texts), _ROWS):
        part = slice(start, start + _ROWS)
        size = len(ids[part])
        from_seed = [ids[i % seeds] for i in range(start, start + size)]
        is_seed = [i < seeds for i in range(start, start + size)]
        columns = {
            "id": ids[part],
            "text": texts[part],
            "unsafe": [False] * size,
            "categories": [[]] * size,
            "language": ["en"] * size,
            "source": ["drawn"] * size,
            "licence": ["none"] * size,
            "parent_id": [None if own else seed for own, seed in zip(is_seed, from_seed, strict=True)],
            "seed_id": from_seed,
            "method": ["seed" if own else "rl" for own in is_seed],
            "round": [0] * size,
        }
        table = pa.table({field.name: pa.array(columns.get(field.name, [None] * size), field.type) for field in SCHEMA})
        paths.append(folder / f"{start:09d}.parquet")
        pq.write_table(table.cast(SCHEMA), paths[-1])
    return paths


def our_near_duplicates(paths: Sequence[Path], work: Path) -> tuple[float, int]:
    """Return the seconds that our stage takes, and how many records are left."""
    inputs, facts, verdicts = (Folder(work / name) for name in ("input", "facts", "verdicts"))
    for folder in (inputs, facts, verdicts):
        folder.start()
    take_in(paths, inputs.path, work / "set_aside.parquet")
    parts = [Part(file, facts.path / file.name) for file in sorted(inputs.path.glob("*.parquet"))]
    start = time.perf_counter()
    over_parts(functools.partial(write_facts, CONFIG), parts, num_cpus=1)
    judge = NearDuplicates(CONFIG).prepare(ClusterSurvey(parts, verdicts.scratch, num_cpus=1))
    counts = over_parts(functools.partial(write_verdicts, judge, verdicts.path), parts, num_cpus=1)
    return time.perf_counter() - start, sum(count[None] for count in counts)


def _xxhash64(text: str) -> int:
    return xxhash.xxh64_intdigest(text.encode())  # datatrove's own does not encode, as xxhash 4 wants it


class _AtSpaces(WordTokenizer):
    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        return [text]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [(0, len(text))]


def datatrove_near_duplicates(folder: Path, count: int, work: Path) -> tuple[float, int]:
    """Return the seconds that datatrove's four steps take, and how many records are left."""
    config = MinhashConfig(n_grams=CONFIG.shingle, num_buckets=BANDS, hashes_per_bucket=SLOTS)
    signatures, buckets, removed = (str(work / name) for name in ("signatures", "buckets", "removed"))
    reader = ParquetReader(str(folder), read_metadata=False)
    signer = MinhashDedupSignature(signatures, config, language=_AtSpaces())
    signer._hash_func = _xxhash64
    steps = [
        ([reader, signer], WORKERS),
        ([MinhashDedupBuckets(signatures, buckets, config=config, lines_to_buffer=-1)], BANDS),
        ([MinhashDedupCluster(buckets, removed, config=config, lines_to_buffer=-1)], 1),
        ([reader, MinhashDedupFilter(removed, lines_to_buffer=-1)], WORKERS),
    ]
    start = time.perf_counter()
    for number, (step, tasks) in enumerate(steps):
        workers = min(tasks, WORKERS)
        LocalPipelineExecutor(step, tasks=tasks, workers=workers, logging_dir=str(work / f"log{number}")).run()
    seconds = time.perf_counter() - start
    return seconds, count - sum(file.stat().st_size // 4 for file in Path(removed).glob("*.remove"))


def near_ratio(records: int, rounds: int, directory: Path) -> float:
    """Return our near-duplicate stage's throughput over that of datatrove."""
    texts = draw_texts(records, seed=0)
    paths = write_files(texts, directory / "near")
    ratios = []
    print(f"near duplicates of {records:,} records\n  ours [s]  datatrove [s]  ratio  left by ours  by datatrove")
    with connect(num_cpus=WORKERS):
        for number in range(rounds):
            work = directory / f"round{number}"
            ours, left = our_near_duplicates(paths, work / "ours")
            theirs, left_by_theirs = datatrove_near_duplicates(directory / "near", records, work / "theirs")
            ratios.append(theirs / ours)
            print(f"{ours:10.1f} {theirs:14.1f} {ratios[-1]:6.2f} {left:13,} {left_by_theirs:13,}", flush=True)
            shutil.rmtree(work)
    return statistics.median(ratios)


def cost(records: int, directory: Path) -> tuple[float, float]:
    """Return what curation without the stages that load models takes: seconds a record, and peak memory [GiB]."""
    paths = write_files(draw_texts(records, seed=1), directory / f"cost{records}")
    evaluation: EvaluationTexts = {"drawn": [(str(i), text) for i, text in enumerate(draw_texts(1000, seed=2))]}
    all_stages = pipeline.stages

    def stages(config: CurationConfig, held_out: EvaluationTexts) -> list[Stage]:
        return [stage for stage in all_stages(config, held_out) if stage.name not in WITH_MODELS]

    with connect(num_cpus=WORKERS), patch.object(pipeline, "stages", stages), _peak_memory() as peak:
        start = time.perf_counter()
        report = curate(paths, directory / f"out{records}", CurationConfig(), evaluation, num_cpus=1)
        seconds = time.perf_counter() - start
    gib = peak[0] / 2**30
    print(
        f"curation of {records:,} records: {seconds:.0f} s, {seconds / records * 1e6:.0f} us a record, "
        f"{report.kept:,} left, peak memory of all processes {gib:.2f} GiB",
        flush=True,
    )
    return seconds / records, gib


@contextlib.contextmanager
def _peak_memory() -> Iterator[list[int]]:
    """Keep the largest sum of resident bytes of this process and its descendants: Ray's and its workers are among them.

    An upper bound: pages that processes share count in each.
    """
    peak, stopped, own = [0], threading.Event(), psutil.Process()

    def watch() -> None:
        while not stopped.wait(1.0):
            total = 0
            for process in [own, *own.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += process.memory_info().rss
            peak[0] = max(peak[0], total)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        stopped.set()
        thread.join()


def main() -> None:
    """Run the parts and print their figures, the last line as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--many", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    logger.remove()  # datatrove's, which tells of every task
    figures: dict[str, float | None] = dict.fromkeys(
        ("near_duplicates_vs_datatrove", "semantic_vs_semhash", "cost_per_record_1m_over_100k", "peak_rss_gib")
    )
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        if "near" in arguments.parts:
            figures["near_duplicates_vs_datatrove"] = near_ratio(arguments.records, arguments.rounds, directory)
        if "semantic" in arguments.parts:
            from tests.benchmarks.curation_speed_semantic import semantic_ratio

            figures["semantic_vs_semhash"] = semantic_ratio(arguments.records)
        if "cost" in arguments.parts:
            few, _ = cost(arguments.records, directory)
            many, peak = cost(arguments.many, directory)
            figures["cost_per_record_1m_over_100k"], figures["peak_rss_gib"] = many / few, peak
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

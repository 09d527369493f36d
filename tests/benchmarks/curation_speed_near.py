"""What near duplicates cost beside datatrove, on the same files, with the same parameters and as many workers.

A part of `curation_speed`. Our stage with what goes before it (signatures, keys, components, verdicts) and the four
steps of datatrove's MinHash pipeline, in turn: 5-word shingles, 14 bands of 8 hashes. Where the two cannot be alike,
datatrove has the lighter load:

- it splits words at spaces, where it would take spaCy by default;
- it reads nothing but text and id, and does not write what it keeps;
- it joins all candidates, where ours compares their signatures.

Needs datatrove, which is no requirement of this project.
"""

import functools
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import xxhash

from cluster.connect import connect
from guardrail.curation import CurationConfig
from guardrail.curation.duplicates import NearDuplicates
from guardrail.curation.folders import Folder, Part, write_facts, write_verdicts
from guardrail.curation.intake import take_in
from guardrail.curation.survey import ClusterSurvey, over_parts
from tests.benchmarks.curation_speed import WORKERS, draw_texts, write_files

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

BANDS, SLOTS = 14, 8
CONFIG = CurationConfig(shingle=5, shingle_unit="words", permutations=BANDS * SLOTS, near_duplicate=0.8)


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
    logger.remove()  # datatrove's, which tells of every task
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

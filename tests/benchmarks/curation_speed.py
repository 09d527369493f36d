"""What curation costs: near duplicates beside datatrove, semantic ones beside semhash, a record of many beside few.

python -m tests.benchmarks.curation_speed [--records 100000] [--many 1000000] [--rounds 3] [--parts near semantic cost]

The records are drawn, not public: 8 to 40 of the 20,000 most frequent English words, with Zipf's weights; 10% are
copies with a word put in or exchanged, 5% exact copies. The two comparisons are in files of their own
(`curation_speed_near.py`, `curation_speed_semantic.py`). Cost of a record: the whole of `curate`, on a cluster of its
own for each size. Labels hang on words, not clearly, so that label noise is looked for and what is doubtful is read
again by a sentence encoder; no strategy made the records, so that fidelity, which runs one, too, judges none.
"""

import argparse
import contextlib
import json
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.connect import connect
from guardrail.curation import CurationConfig, curate
from guardrail.curation.contamination import EvaluationTexts
from guardrail.models import resolve
from guardrail.records import SCHEMA, record_id

PARTS = ("near", "semantic", "cost")
WORKERS = 2
CONFIG = CurationConfig()
_VOCABULARY = 20_000
_ROWS = 20_000  # of a file


def draw_texts(count: int, seed: int, *, reordered: bool = False) -> list[str]:
    """Return texts: every tenth is nearly another one (in another order if `reordered`), every twentieth equals one."""
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
            text = random.permutation(text).tolist() if reordered else text
            place = random.integers(len(text))
            text[place : place + random.integers(2)] = [words[random.integers(_VOCABULARY)]]
        elif number and number % 20 == 7:
            text = texts[random.integers(number)].split(" ")
        texts.append(" ".join(text))
    return texts


def write_files(texts: Sequence[str], folder: Path) -> list[Path]:
    """Write texts as records: 5% seeds, the others made from those of their label by one method."""
    folder.mkdir()
    ids = [record_id(text) for text in texts]
    label = [_unsafe(text) for text in texts]
    count = max(1, len(texts) // 20)
    seeds = {unsafe: [ids[i] for i in range(count) if label[i] is unsafe] for unsafe in (True, False)}
    paths = []
    for start in range(0, len(texts), _ROWS):
        part = slice(start, start + _ROWS)
        size = len(ids[part])
        unsafe = label[part]
        is_seed = [i < count for i in range(start, start + size)]
        from_seed = [
            ids[i] if i < count else seeds[label[i]][i % len(seeds[label[i]])] for i in range(start, start + size)
        ]
        columns = {
            "id": ids[part],
            "text": texts[part],
            "unsafe": unsafe,
            "categories": [None if each else [] for each in unsafe],
            "language": ["en"] * size,
            "source": ["drawn"] * size,
            "licence": ["none"] * size,
            "parent_id": [None if own else seed for own, seed in zip(is_seed, from_seed, strict=True)],
            "seed_id": from_seed,
            "method": ["seed" if own else "imported" for own in is_seed],
            "round": [0] * size,
        }
        table = pa.table({field.name: pa.array(columns.get(field.name, [None] * size), field.type) for field in SCHEMA})
        paths.append(folder / f"{start:09d}.parquet")
        pq.write_table(table.cast(SCHEMA), paths[-1])
    return paths


def _unsafe(text: str) -> bool:
    words = text.split()
    return sum(len(word) % 2 for word in words) > len(words) / 2


def cost(records: int, directory: Path) -> tuple[float, float]:
    """Return what curation takes: seconds a record, and peak memory [GiB]."""
    paths = write_files(draw_texts(records, seed=1), directory / f"cost{records}")
    evaluation: EvaluationTexts = {"drawn": [(str(i), text) for i, text in enumerate(draw_texts(1000, seed=2))]}
    with connect(num_cpus=WORKERS), _peak_memory() as peak:
        start = time.perf_counter()
        report = curate(paths, directory / f"out{records}", CONFIG, evaluation, num_cpus=1)
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
    figures: dict[str, float | None] = dict.fromkeys(
        ("near_duplicates_vs_datatrove", "semantic_vs_semhash", "cost_per_record_1m_over_100k", "peak_rss_gib")
    )
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        if "near" in arguments.parts:
            from tests.benchmarks.curation_speed_near import near_ratio

            figures["near_duplicates_vs_datatrove"] = near_ratio(arguments.records, arguments.rounds, directory)
        if "semantic" in arguments.parts:
            from tests.benchmarks.curation_speed_semantic import semantic_ratio

            figures["semantic_vs_semhash"] = semantic_ratio(arguments.records, arguments.rounds)
        if "cost" in arguments.parts:
            few, _ = cost(arguments.records, directory)
            many, peak = cost(arguments.many, directory)
            figures["cost_per_record_1m_over_100k"], figures["peak_rss_gib"] = many / few, peak
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

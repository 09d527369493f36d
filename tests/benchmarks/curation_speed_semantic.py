"""What semantic duplicates cost beside semhash, with the same encoder, threshold and texts, in one process each.

python -m tests.benchmarks.curation_speed_semantic [--records 100000] [--rounds 3]

Both embed the texts, find the pairs over the threshold and choose what stays; ours also fits the encoder's frequencies
and writes the vectors to disk. The texts are those of `curation_speed`, their near copies in another order.

Needs semhash, which is no requirement of this project.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa

from guardrail.curation import CurationConfig
from guardrail.curation.semantic import SemanticDuplicates
from guardrail.embedding import STATIC_PREFIX
from guardrail.records import make_record, to_table
from guardrail.static_embedding import StaticEncoder
from tests.benchmarks.curation_speed import draw_texts
from tests.guardrail.surveys import InMemory

try:
    from semhash import SemHash
except ImportError as error:
    sys.exit(
        f"the benchmark needs semhash ({error}): pip install --no-deps semhash==0.5.0 model2vec==0.10.0 "
        "vicinity==0.4.6 usearch==2.26.6 numkong frozendict pyversity orjson"
    )

CONFIG = CurationConfig()
MODEL = CONFIG.semantic_encoder.removeprefix(STATIC_PREFIX)


def ours(table: pa.Table) -> tuple[float, int]:
    """Return the seconds that our stage takes and how many records it keeps."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        judge = SemanticDuplicates(CONFIG).prepare(InMemory(table, folder=Path(folder), rows_per_file=20_000))
        kept = judge(table).count(None)
        return time.perf_counter() - start, kept


def semhash(texts: list[str], encoder: StaticEncoder) -> tuple[float, int]:
    """Return the seconds that semhash takes and how many texts it keeps."""
    start = time.perf_counter()
    result = SemHash.from_records(texts, model=encoder).self_deduplicate(threshold=CONFIG.semantic_duplicate)
    return time.perf_counter() - start, len(result.selected)


def semantic_ratio(records: int, rounds: int = 3) -> float:
    """Return our stage's throughput over semhash's, the median of rounds in which both run in turn."""
    texts = draw_texts(records, seed=0, reordered=True)
    made = {record["id"]: record for record in (make_record(text, unsafe=False, source="drawn") for text in texts)}
    table = to_table(made.values()).append_column("row", pa.array(range(len(made)), pa.int64()))
    encoder = StaticEncoder.distilled(MODEL)
    print(f"semantic duplicates of {records:,} records\n  ours [s]  semhash [s]  ratio  left by ours  by semhash")
    ratios = []
    for _ in range(rounds):
        seconds, left = ours(table)
        their_seconds, left_by_theirs = semhash(texts, encoder)
        ratios.append(their_seconds / seconds)
        print(f"{seconds:10.1f} {their_seconds:12.1f} {ratios[-1]:6.2f} {left:13,} {left_by_theirs:11,}", flush=True)
    return statistics.median(ratios)


def main() -> None:
    """Print the rounds and the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(f"median ratio: {semantic_ratio(arguments.records, arguments.rounds):.2f}")


if __name__ == "__main__":
    main()

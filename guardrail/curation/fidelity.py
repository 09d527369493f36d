"""The stage that checks what a generated record means against the seeds it grew from."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.special import expit

from guardrail.curation.config import CurationConfig
from guardrail.curation.folds import FOLDS, UNDERSTOOD, fitted_without, folds_of, learnable
from guardrail.curation.stage import Drop, Judge, Survey, keep_all
from guardrail.embedding import loaded_embedder
from guardrail.fidelity import polarity_flipped
from guardrail.intent import IntentModel
from guardrail.records import Record, from_table
from guardrail.synthesis.strategies import STRATEGIES, STRATEGY
from guardrail.text import canonical

_LIKELY = 0.5  # least probability of its label that a classifier of the seeds must give a record
_STRENGTH = 10.0  # inverse regularisation
# Seeds that other requests of their kind are compared with, at most: those of the smallest ids, which are hashes. Their
# embeddings, 77 MB by the bundled embedder, are on the driver and in each worker.
_COMPARED = 50_000
_LEARNED = 30_000  # of these that the classifiers learn from, at most
_PAIRS = 256  # of a contrast and its seed, whose tokens' states are in memory together
_MOST_OTHERS = 20_000  # seeds that nothing judged grew from: a data set may call a million records so
#: Embeddings and words are English: translations are left to judges' votes.
_JUDGED = [strategy.name for strategy in STRATEGIES if strategy.language is None]
_SEED_ROWS = pa.schema([("id", pa.string()), ("text", pa.string()), ("unsafe", pa.bool_()), ("embedding", pa.binary())])


class LabelFidelity:
    """Synthetic records that are not to their seed what their strategy says.

    What says the seed's request otherwise must be like it and not turned against it; what is written around the seed
    must hold it word for word; another request of its kind must look like some seed (of very many, of a sample); a
    contrast must be like the seed, and ask for something else. All but harmless contrasts, which look harmful on
    purpose, must have their label by a classifier of the other seeds, too: what a small model makes of a harmful
    request is often just odd. Around a seed it is the other words that may do no harm where the seed does none; around
    a harmful one they may say anything. A paraphrase must be as near or as far as its strategy asks. What grew from a
    seed that an earlier stage dropped, as another's twin, say, is held against it all the same. Records of other
    methods are not judged: attacks have passed the adversary's gate. Nor are those whose seeds are not among the
    inputs.
    """

    name = "fidelity"

    def __init__(self, config: CurationConfig) -> None:
        self.config = config
        self.settings: Mapping[str, Any] = config.model_dump(
            include={"embedder", "paraphrase_similarity", "augment_similarity"}
        )

    def prepare(self, survey: Survey) -> Judge:
        """Have seeds written with their embeddings, if there is anything to hold against them: those of what is judged,
        and `_MOST_OTHERS` more, which stand for all. A sample of them is learned from.
        """
        records = survey.kept(["id", "method", "seed_id"])
        judged = records.filter(pc.is_in(records["method"], value_set=pa.array(_JUDGED)))
        if not judged.num_rows:
            return keep_all
        kept = records.filter(pc.equal(records["method"], "seed"))["id"]
        asked = pc.unique(judged["seed_id"])
        others = kept.filter(pc.invert(pc.is_in(kept, value_set=asked)))
        wanted = pa.concat_arrays([asked, *others.take(pc.sort_indices(others)[:_MOST_OTHERS]).chunks])
        paths = survey.written(functools.partial(_seed_rows, self.config, wanted), of_inputs=True)
        kept = kept.filter(pc.is_in(kept, value_set=wanted))
        sample = _stored(paths, kept.take(pc.sort_indices(kept)[:_COMPARED]).combine_chunks())
        return functools.partial(_judge_fidelity, Learned(sample), paths, self.config)


@functools.cache  # once in each worker process
def _intent_model() -> IntentModel:
    return IntentModel.from_pretrained()


def _seed_rows(config: CurationConfig, wanted: pa.Array, batch: pa.Table) -> pa.Table:
    """Return id, text, unsafe and embedding, the bytes of float32 [d], of those seeds of a batch that are wanted."""
    batch = batch.filter(pc.is_in(batch["id"], value_set=wanted))
    seeds = [record for record in from_table(batch) if record["method"] == "seed" and canonical(record["text"])]
    embeddings = loaded_embedder(config.embedder).encode([record["text"] for record in seeds])
    rows = [
        {**{key: record[key] for key in ("id", "text", "unsafe")}, "embedding": embedding.tobytes()}
        for record, embedding in zip(seeds, embeddings, strict=True)
    ]
    return pa.Table.from_pylist(rows, _SEED_ROWS)


class Seed(NamedTuple):
    """A seed and the embedding of its text, L2-normalised [d]."""

    text: str
    unsafe: bool
    embedding: NDArray[np.float32]


def _stored(paths: Sequence[Path], ids: pa.Array) -> dict[str, Seed]:
    """Return the seeds of these ids, as far as there are any; beside them no more is held than one file.

    Args:
        paths: of files that hold what `_seed_rows` returned; of several rows of one id the first by text counts.
        ids: of the seeds.
    """
    found: dict[str, Seed] = {}
    for path in paths if len(ids) else ():
        for row in pq.read_table(path, filters=pc.field("id").isin(ids)).to_pylist():
            if row["id"] not in found or row["text"] < found[row["id"]].text:
                found[row["id"]] = Seed(row["text"], row["unsafe"], np.frombuffer(row["embedding"], dtype=np.float32))
    return found


class Learned:
    """What a sample of seeds says of any record: their embeddings, and a classifier for each fold.

    Args:
        sample: of the seeds that earlier stages kept, by id.
    """

    def __init__(self, sample: Mapping[str, Seed]) -> None:
        ids = sorted(sample)
        self.compared = np.array([sample[seed].embedding for seed in ids], dtype=np.float32)
        ids = ids[:_LEARNED]
        labels = np.array([sample[seed].unsafe for seed in ids], dtype=bool)
        self.classifiers = _classifiers(self.compared[:_LEARNED], labels, folds_of(ids))


@dataclass(frozen=True)
class Seeds:
    """The seeds that records grew from, by id, and what it takes to be close to them."""

    own: Mapping[str, Seed]
    learned: Learned
    config: CurationConfig

    def drops(self, records: Sequence[Record], embeddings: np.ndarray) -> list[Drop | None]:
        """Return why generated records' labels cannot be trusted, or None.

        Args:
            records: of strategies and seeds that are known.
            embeddings: of what `said` returns, L2-normalised [n, d].
        """
        drops = [self._unlike(record, embedding) for record, embedding in zip(records, embeddings, strict=True)]
        contrasts = [
            i
            for i, record in enumerate(records)
            if drops[i] is None and STRATEGY[record["method"]].relation == "contrast"
        ]
        for start in range(0, len(contrasts), _PAIRS):
            places = contrasts[start : start + _PAIRS]
            of_seeds = [self.own[records[i]["seed_id"]].text for i in places]
            asked = _intent_model().kept_probability(of_seeds, [records[i]["text"] for i in places])
            for i, same in zip(places, asked, strict=True):
                drops[i] = _asking(float(same))
        return [
            drop or self._unlikely(record, embedding)
            for drop, record, embedding in zip(drops, records, embeddings, strict=True)
        ]

    def said(self, record: Record) -> str:
        """Return a record's text, without its seed where it is around that."""
        if STRATEGY[record["method"]].relation == "around":
            return canonical(record["text"]).replace(canonical(self.own[record["seed_id"]].text), " ")
        return record["text"]

    def _unlike(self, record: Record, embedding: np.ndarray) -> Drop | None:
        """Return how a record is not to its seed what its strategy says."""
        seed_id, relation = record["seed_id"], STRATEGY[record["method"]].relation
        seed = self.own[seed_id]
        if relation == "around":
            return None if canonical(seed.text) in canonical(record["text"]) else Drop("without its seed", seed_id)
        if relation == "kin":
            nearest = float((self.learned.compared @ embedding).max()) if len(self.learned.compared) else -1.0
            if nearest < self.config.augment_similarity:
                return Drop("unlike any seed", f"similarity {nearest:.2f}")
            return None
        own = float(seed.embedding @ embedding)
        least = self.config.paraphrase_similarity if relation == "same" else self.config.augment_similarity
        if own < least:
            return Drop("unlike its seed", f"similarity {own:.2f}")
        if relation == "same" and polarity_flipped(seed.text, record["text"]):
            return Drop("turned against its seed", seed_id)
        least, most = STRATEGY[record["method"]].similarity
        if own < least:
            return Drop("too far from its seed", f"similarity {own:.2f}")
        if own > most:
            return Drop("too near its seed", f"similarity {own:.2f}")
        return None

    def _unlikely(self, record: Record, embedding: np.ndarray) -> Drop | None:
        # A harmless contrast looks harmful, and a harmful request among other words need not.
        hidden = {"contrast": not record["unsafe"], "around": record["unsafe"]}
        if self.learned.classifiers is None or hidden.get(STRATEGY[record["method"]].relation, False):
            return None
        weights = self.learned.classifiers[folds_of([record["seed_id"]])[0]]
        unsafe = float(expit(weights[:-1] @ embedding + weights[-1]))
        likely = unsafe if record["unsafe"] else 1 - unsafe
        word = "unsafe" if record["unsafe"] else "safe"
        return Drop("like seeds of the other label", f"P({word}) {likely:.2f}") if likely < _LIKELY else None


def _asking(same: float) -> Drop | None:
    likely = same >= 1 - _intent_model().limits.min_intent
    return Drop("asks what its seed asks", f"P(same) {same:.2f}") if likely else None


def _classifiers(embeddings: np.ndarray, unsafe: np.ndarray, fold: np.ndarray) -> np.ndarray | None:
    """Return weights and bias of a classifier for each fold, learned from the other folds' seeds [folds, d + 1].

    None where they cannot tell the seeds themselves apart.
    """
    if not learnable(unsafe, fold):
        return None
    fit = functools.partial(
        fitted_without, features=embeddings, labels=unsafe, folds=fold, strength=_STRENGTH, iterations=1000
    )
    weights = np.stack([fit(each) for each in range(FOLDS)])
    logits = np.sum(embeddings * weights[fold, :-1], axis=1) + weights[fold, -1]
    return weights if np.mean((logits > 0) == unsafe) >= UNDERSTOOD else None


def _judge_fidelity(
    learned: Learned, paths: Sequence[Path], config: CurationConfig, batch: pa.Table
) -> list[Drop | None]:
    records = from_table(batch)
    verdicts: list[Drop | None] = [None] * len(records)
    asked = batch["seed_id"].filter(pc.is_in(batch["method"], value_set=pa.array(_JUDGED)))
    seeds = Seeds(_stored(paths, pc.unique(asked)), learned, config)
    # Embedding costs more than all other stages together: only what is judged is embedded.
    judged = [i for i, record in enumerate(records) if record["method"] in _JUDGED and record["seed_id"] in seeds.own]
    if judged:
        embeddings = loaded_embedder(config.embedder).encode([seeds.said(records[i]) for i in judged])
        for i, drop in zip(judged, seeds.drops([records[i] for i in judged], embeddings), strict=True):
            verdicts[i] = drop
    return verdicts

"""The stage that checks what a generated record means against the seeds it grew from."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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
_LEARNED = 30_000  # seeds that the classifiers learn from, at most: those of the smallest ids, which are hashes
_PAIRS = 256  # of a contrast and its seed, whose tokens' states are in memory together
_MOST_OTHERS = 20_000  # seeds that nothing judged grew from: a data set may call a million records so
#: Embeddings and words are English: translations are left to judges' votes.
_JUDGED = [strategy.name for strategy in STRATEGIES if strategy.language is None]


class LabelFidelity:
    """Synthetic records that are not to their seed what their strategy says.

    What says the seed's request otherwise must be like it and not turned against it; what is written around the seed
    must hold it word for word; another request of its kind must look like some seed; a contrast must be like the seed,
    and ask for something else. All but harmless contrasts, which look harmful on purpose, must have their label by a
    classifier of the other seeds, too: what a small model makes of a harmful request is often just odd. Around a seed
    it is the other words that may do no harm where the seed does none; around a harmful one they may say anything.
    What grew from a seed that an earlier stage dropped, as another's twin, say, is held against it all the same.
    Records of other methods are not judged: attacks have passed the adversary's gate. Nor are those whose seeds are not
    among the inputs.
    """

    name = "fidelity"

    def __init__(self, config: CurationConfig) -> None:
        self.config = config
        self.settings: Mapping[str, Any] = config.model_dump(
            include={"embedder", "paraphrase_similarity", "augment_similarity"}
        )

    def prepare(self, survey: Survey) -> Judge:
        """Gather seeds with their embeddings, if there is anything to hold against them: those of what is judged, and
        `_MOST_OTHERS` more, which stand for all.
        """
        records = survey.kept(["id", "method", "seed_id"])
        judged = records.filter(pc.is_in(records["method"], value_set=pa.array(_JUDGED)))
        if not judged.num_rows:
            return keep_all
        kept = records.filter(pc.equal(records["method"], "seed"))["id"]
        asked = pc.unique(judged["seed_id"])
        others = kept.filter(pc.invert(pc.is_in(kept, value_set=asked)))
        wanted = pa.concat_arrays([asked, *others.take(pc.sort_indices(others)[:_MOST_OTHERS]).chunks])
        rows = survey.computed(functools.partial(_seed_rows, self.config, wanted), of_inputs=True)
        seeds = Seeds(rows, self.config, kept.filter(pc.is_in(kept, value_set=wanted)).to_pylist())
        return functools.partial(_judge_fidelity, seeds)


@functools.cache  # once in each worker process
def _intent_model() -> IntentModel:
    return IntentModel.from_pretrained()


def _seed_rows(config: CurationConfig, wanted: pa.Array, batch: pa.Table) -> pa.Table:
    batch = batch.filter(pc.is_in(batch["id"], value_set=wanted))
    seeds = [record for record in from_table(batch) if record["method"] == "seed" and canonical(record["text"])]
    rows = [{key: record[key] for key in ("id", "text", "unsafe")} for record in seeds]
    embeddings = loaded_embedder(config.embedder).encode([record["text"] for record in seeds])
    table = pa.Table.from_pylist(rows, pa.schema([("id", pa.string()), ("text", pa.string()), ("unsafe", pa.bool_())]))
    column = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel(), pa.float32()), embeddings.shape[1])
    return table.append_column("embedding", column)


class Seeds:
    """The seeds, what it takes to be close to them, and a classifier for each fold that has not seen its seeds.

    Args:
        seeds: what `_seed_rows` found; the same seed may be there more than once.
        config: of the curation.
        kept: ids of those that earlier stages kept; classifiers learn from these.
    """

    def __init__(self, seeds: pa.Table, config: CurationConfig, kept: Iterable[str]) -> None:
        seeds = seeds.sort_by([("id", "ascending"), ("text", "ascending")])
        first = {seed: number for number, seed in reversed([*enumerate(seeds["id"].to_pylist())])}
        ids = sorted(first)
        seeds = seeds.take([first[seed] for seed in ids])
        self.config = config
        self.texts = dict(zip(ids, seeds["text"].to_pylist(), strict=True))
        self.index = {seed: i for i, seed in enumerate(ids)}
        flat = seeds["embedding"].combine_chunks().flatten().to_numpy()
        self.embeddings = flat.reshape(len(ids), -1) if ids else flat.reshape(0, 0)
        learned = sorted(self.index[seed] for seed in kept)
        self.kept = self.embeddings[learned]
        learned = learned[:_LEARNED]
        labels, folds = seeds["unsafe"].to_numpy()[learned], folds_of([ids[place] for place in learned])
        self.classifiers = _classifiers(self.embeddings[learned], labels, folds)

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
            of_seeds = [self.texts[records[i]["seed_id"]] for i in places]
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
            return canonical(record["text"]).replace(canonical(self.texts[record["seed_id"]]), " ")
        return record["text"]

    def _unlike(self, record: Record, embedding: np.ndarray) -> Drop | None:
        """Return how a record is not to its seed what its strategy says."""
        seed_id, relation = record["seed_id"], STRATEGY[record["method"]].relation
        seed = self.texts[seed_id]
        if relation == "around":
            return None if canonical(seed) in canonical(record["text"]) else Drop("without its seed", seed_id)
        if relation == "kin":
            nearest = float((self.kept @ embedding).max(initial=-1.0))
            if nearest < self.config.augment_similarity:
                return Drop("unlike any seed", f"similarity {nearest:.2f}")
            return None
        own = float(self.embeddings[self.index[seed_id]] @ embedding)
        least = self.config.paraphrase_similarity if relation == "same" else self.config.augment_similarity
        if own < least:
            return Drop("unlike its seed", f"similarity {own:.2f}")
        if relation == "same" and polarity_flipped(seed, record["text"]):
            return Drop("turned against its seed", seed_id)
        return None

    def _unlikely(self, record: Record, embedding: np.ndarray) -> Drop | None:
        # A harmless contrast looks harmful, and a harmful request among other words need not.
        hidden = {"contrast": not record["unsafe"], "around": record["unsafe"]}
        if self.classifiers is None or hidden.get(STRATEGY[record["method"]].relation, False):
            return None
        weights = self.classifiers[folds_of([record["seed_id"]])[0]]
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


def _judge_fidelity(seeds: Seeds, batch: pa.Table) -> list[Drop | None]:
    records = from_table(batch)
    verdicts: list[Drop | None] = [None] * len(records)
    # Embedding costs more than all other stages together: only what is judged is embedded.
    judged = [i for i, record in enumerate(records) if record["method"] in _JUDGED and record["seed_id"] in seeds.index]
    if judged:
        embeddings = loaded_embedder(seeds.config.embedder).encode([seeds.said(records[i]) for i in judged])
        for i, drop in zip(judged, seeds.drops([records[i] for i in judged], embeddings), strict=True):
            verdicts[i] = drop
    return verdicts

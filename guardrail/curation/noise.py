"""The stage that finds labels that the other records contradict.

Confident learning (Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR
2021; by cleanlab): classifiers that have seen neither a record nor any other that grew from its seed give probabilities
of which the share of wrong labels, and then the records that have them, are estimated. All records are read fast, by
words and token vectors; what is doubtful then is read again, by an encoder's middle layer. It cannot tell a wrong label
from a text that the classifiers do not understand. So it is kept from texts that are made to be misunderstood, and says
nothing where the classifiers understand too little.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import csr_array, hstack
from scipy.special import expit
from sklearn.feature_extraction.text import HashingVectorizer

from guardrail.curation.config import CurationConfig
from guardrail.curation.folds import FOLDS, UNDERSTOOD, fitted_without, folds_of, learnable
from guardrail.curation.stage import ByRow, Judge, Survey, are_attacks, are_contrasts, are_trusted, keep_all
from guardrail.embedding import SharedEmbedder, loaded_middle_layer, shared_encoder
from guardrail.static_embedding import StaticEncoder
from guardrail.text import canonical, joined

_LEARNED = 30_000  # records that the classifiers learn from, at most
_LEARNED_AGAIN = 10_000  # the same of the second reading
_DOUBTFUL = (
    0.4  # probability of the other label from which a record is read again: one in four, but nearly all wrong ones
)
_FEWEST = 200  # judged records; of fewer nothing can be said
_LONGEST = 4000  # characters of a text that count
_WORDS = HashingVectorizer(
    preprocessor=canonical,
    token_pattern=r"\w+",
    ngram_range=(1, 2),
    n_features=2**16,
    binary=True,
    alternate_sign=False,
)


class LabelNoise:
    """Records that confident learning takes for wrongly labelled, the other label being as likely as `label_noise`.

    Not judged are attacks and contrasts, which are made to look like the other label, and what comes from
    `trusted_sources`: our own seeds are labelled by hand and look like the other label on purpose, and what is made
    from them goes through checks of its own. (Public training sets are seeds too, but of other sources.) The
    classifiers learn from trusted records and contrasts, too.
    What grew from a seed that is dropped, attacks too, goes with it where it has the seed's label.
    """

    name = "noise"

    def __init__(self, config: CurationConfig) -> None:
        self.config = config
        self.settings: Mapping[str, Any] = config.model_dump(
            mode="json", include={"label_noise", "trusted_sources", "semantic_encoder", "embedder"}
        )

    def prepare(self, survey: Survey) -> Judge:
        """Fit a classifier for each fold to a sample, have all records classified, and estimate who is wrong."""
        lineage = records = survey.kept(["row", "id", "seed_id", "unsafe", "method", "source"])
        trusted = self.config.trusted_sources
        if _judged(records, trusted).sum() < _FEWEST:
            return keep_all
        records = records.filter(pa.array(~are_attacks(records)))
        # Ids are hashes: the smallest ones are as good as drawn by lot.
        rows = records["row"].take(pc.sort_indices(records["id"])[:_LEARNED])
        sample = survey.computed(functools.partial(_learned_from, rows)).sort_by("id")
        words, texts = _Words(shared_encoder(self.config.semantic_encoder)), sample["text"].to_pylist()
        scored = self._read(survey, sample, words, words(texts), None)
        if scored is None or _understood(scored) < UNDERSTOOD - 0.1:  # the second reading, of nearly all, is no help
            return keep_all
        doubtful = scored["row"].filter(pa.array(_other(scored) >= _DOUBTFUL))
        if len(doubtful):
            sample, texts = sample.slice(0, _LEARNED_AGAIN), texts[:_LEARNED_AGAIN]
            states, found = _States.scaled_to(texts, self.config.embedder)
            again = self._read(survey, sample, states, found, doubtful)
            scored = scored if again is None else _replaced(scored, again)
        return _dropping(scored, self.config.label_noise, lineage)

    def _read(
        self,
        survey: Survey,
        sample: pa.Table,
        features: "_Words | _States",
        found: csr_array,
        rows: pa.ChunkedArray | None,
    ) -> pa.Table | None:
        """Fit a classifier for each fold to a sample; return what `_scored` makes of all records, or of `rows`.

        None where a fold's classifier would know one label alone.

        Args:
            survey: of all records.
            sample: what the classifiers learn from.
            features: that they know records by.
            found: those of the sample.
            rows: of the records that are wanted; None: all.
        """
        labels, folds = sample["unsafe"].to_numpy(), folds_of(sample["seed_id"].to_pylist())
        if not learnable(labels, folds):
            return None
        fit = functools.partial(
            fitted_without, features=found, labels=labels, folds=folds, strength=features.strength, iterations=300
        )
        weights = np.stack(survey.each(fit, range(FOLDS)))
        trusted = self.config.trusted_sources
        return survey.computed(functools.partial(_scored, features, weights, trusted, rows)).sort_by("id")


def _judged(records: pa.Table, trusted: Sequence[str]) -> NDArray[np.bool_]:
    return ~are_attacks(records) & ~are_contrasts(records) & ~are_trusted(records, trusted)


def _learned_from(rows: pa.ChunkedArray, batch: pa.Table) -> pa.Table:
    batch = batch.filter(pc.is_in(batch["row"], value_set=rows.combine_chunks()))
    return batch.select(["id", "seed_id", "unsafe"]).append_column("text", pa.array(_texts(batch), pa.string()))


def _texts(batch: pa.Table) -> list[str]:
    texts = map(joined, batch["text"].to_pylist(), batch["response"].to_pylist())
    return [text[:_LONGEST] for text in texts]


@dataclass(frozen=True)
class _Words:
    """Features of the first reading: hashed words and pairs of words, and the static embedding at half their length."""

    encoder: StaticEncoder | SharedEmbedder
    strength = 3.0  # inverse regularisation

    def __call__(self, texts: Sequence[str]) -> csr_array:
        """Return [texts, features]."""
        return csr_array(hstack([_words(texts), csr_array(self.encoder.encode(texts) * 0.5)]))


@dataclass(frozen=True)
class _States:
    """Features of the second reading: the same words, and the middle layer's states, at equal length on average.

    Attributes:
        encoder: whose layer it is, as `guardrail.models.resolve` takes it.
        mean, deviation: of the states' numbers over a sample [2 d].
    """

    encoder: str
    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]
    strength = 1.0

    @classmethod
    def scaled_to(cls, texts: Sequence[str], encoder: str) -> tuple["_States", csr_array]:
        """Return the features that some texts scale, and those of these texts."""
        states = loaded_middle_layer(encoder).encode(texts)
        features = cls(encoder, states.mean(axis=0), states.std(axis=0) + 1e-6)
        return features, features._beside_words(texts, states)

    def __call__(self, texts: Sequence[str]) -> csr_array:
        """Return [texts, features]; their last bits hang on the texts beside them."""
        return self._beside_words(texts, loaded_middle_layer(self.encoder).encode(texts))

    def _beside_words(self, texts: Sequence[str], states: NDArray[np.float32]) -> csr_array:
        scaled = (states - self.mean) / (self.deviation * np.sqrt(len(self.mean)))
        return csr_array(hstack([_words(texts), csr_array(scaled)]))


def _words(texts: Sequence[str]) -> csr_array:
    return _WORDS.transform([*texts, ""])[: len(texts)]  # it refuses to transform nothing


def _scored(
    features: _Words | _States,
    weights: NDArray[np.float64],
    trusted: Sequence[str],
    rows: pa.ChunkedArray | None,
    batch: pa.Table,
) -> pa.Table:
    """Return row, id, unsafe and probability of being unsafe of the records that are judged.

    Args:
        features: those that the classifiers learned with.
        weights: of the classifier that has not seen the fold, for each fold [folds, features + 1].
        trusted: starts of sources.
        rows: of the records that are wanted; None: all.
        batch: any records.
    """
    batch = batch.filter(pa.array(_judged(batch, trusted)))
    if rows is not None:
        batch = batch.filter(pc.is_in(batch["row"], value_set=rows.combine_chunks()))
    logits = features(_texts(batch)) @ weights[:, :-1].T + weights[:, -1]
    unseen = logits[np.arange(len(batch)), folds_of(batch["seed_id"].to_pylist())]
    return batch.select(["row", "id", "unsafe"]).append_column("probability", pa.array(expit(unseen), pa.float64()))


def _understood(scored: pa.Table) -> float:
    """Return the share of records whose label is the likelier one."""
    return float(np.mean(_other(scored) < 0.5))


def _other(scored: pa.Table) -> NDArray[np.float64]:
    """Return the probability of the label that a record does not have."""
    unsafe = scored["probability"].to_numpy()
    return np.where(scored["unsafe"].to_numpy(), 1 - unsafe, unsafe)


def _replaced(scored: pa.Table, again: pa.Table) -> pa.Table:
    """Return the first table with the probabilities of the second where it has the record."""
    probability = scored["probability"].to_numpy().copy()
    probability[pc.index_in(again["row"], value_set=scored["row"].combine_chunks()).to_numpy()] = again["probability"]
    return scored.set_column(scored.column_names.index("probability"), "probability", pa.array(probability))


def _dropping(scored: pa.Table, least: float, lineage: pa.Table) -> Judge:
    """Return the judge of what `_scored` returned, sorted by id, and of what grew from it.

    Args:
        scored: row, id, unsafe, probability of being unsafe.
        least: probability that the other label must have.
        lineage: row, id, seed_id and unsafe of all records.
    """
    from cleanlab.filter import find_label_issues  # takes seconds, and the driver alone needs it

    labels, unsafe = scored["unsafe"].to_numpy().astype(np.int64), scored["probability"].to_numpy()
    if len(np.unique(labels)) < 2 or _understood(scored) < UNDERSTOOD:
        return keep_all
    issues = find_label_issues(labels, np.stack([1 - unsafe, unsafe], axis=1), n_jobs=1)
    other = _other(scored)
    dropped = np.flatnonzero(issues & (other >= least))
    wrong = scored.take(pa.array(dropped)).to_pydict()
    evidence = {
        row: f"P({'safe' if labels[i] else 'unsafe'}) {other[i]:.2f}"
        for row, i in zip(wrong["row"], dropped, strict=True)
    }
    label = dict(zip(wrong["id"], wrong["unsafe"], strict=True))
    for each in lineage.filter(pc.is_in(lineage["seed_id"], value_set=pa.array(wrong["id"], pa.string()))).to_pylist():
        if label[each["seed_id"]] == each["unsafe"]:
            evidence.setdefault(each["row"], f"of its seed {each['seed_id']}")
    return _judge(evidence)


def _judge(evidence: Mapping[int, str]) -> ByRow:
    reasons = pa.array(["label noise"] * len(evidence), pa.string())
    rows, told = pa.array(evidence.keys(), pa.int64()), pa.array(evidence.values(), pa.string())
    return ByRow(pa.table({"row": pa.chunked_array([rows]), "reason": reasons, "evidence": told}))

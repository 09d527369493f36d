"""The stage that finds labels that the other records contradict.

Confident learning (Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR
2021; by cleanlab): classifiers that have seen neither a record nor any other that grew from its seed give probabilities
of which the share of wrong labels, and then the records that have them, are estimated. It cannot tell a wrong label
from a text that the classifiers do not understand. So it is kept from texts that are made to be misunderstood, and says
nothing where the classifiers understand too little.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import csr_array, hstack
from scipy.special import expit
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from guardrail.curation.config import CurationConfig
from guardrail.curation.stage import (
    FOLDS,
    UNDERSTOOD,
    ByRow,
    Judge,
    Survey,
    are_attacks,
    are_trusted,
    folds_of,
    keep_all,
)
from guardrail.embedding import SharedEmbedder, shared_encoder
from guardrail.static_embedding import StaticEncoder
from guardrail.text import canonical, joined

_LEARNED = 30_000  # records that the classifiers learn from, at most
_FEWEST = 200  # judged records; of fewer nothing can be said
_LONGEST = 4000  # characters of a text that count
_STRENGTH = 3.0  # inverse regularisation
_EMBEDDED = 0.5  # length of the embedding beside that of the words, which is 1
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

    Not judged are attacks, which are made to look like the other label, and what comes from `trusted_sources`: our own
    seeds are labelled by hand and look like the other label on purpose, and what is made from them goes through checks
    of its own. (Public training sets are seeds too, but of other sources.) The classifiers learn from trusted records.
    """

    name = "noise"

    def __init__(self, config: CurationConfig) -> None:
        self.config = config
        self.settings: Mapping[str, Any] = config.model_dump(
            mode="json", include={"label_noise", "trusted_sources", "semantic_encoder"}
        )

    def prepare(self, survey: Survey) -> Judge:
        """Fit a classifier for each fold to a sample, have all records classified, and estimate who is wrong."""
        records = survey.kept(["row", "id", "method", "source"])
        trusted = self.config.trusted_sources
        if _judged(records, trusted).sum() < _FEWEST:
            return keep_all
        records = records.filter(pa.array(~are_attacks(records)))
        # Ids are hashes: the smallest ones are as good as drawn by lot.
        rows = records["row"].take(pc.sort_indices(records["id"])[:_LEARNED])
        sample = survey.computed(functools.partial(_learned_from, rows)).sort_by("id")
        labels, folds = sample["unsafe"].to_numpy(), folds_of(sample["seed_id"].to_pylist())
        if any(len(np.unique(labels[folds != fold])) < 2 for fold in range(FOLDS)):
            return keep_all
        encoder = shared_encoder(self.config.semantic_encoder)
        features = _features(encoder, sample["text"].to_pylist())
        weights = np.stack(survey.each(functools.partial(_fitted, features, labels, folds), range(FOLDS)))
        scored = survey.computed(functools.partial(_scored, encoder, weights, trusted)).sort_by("id")
        return _dropping(scored, self.config.label_noise)


def _judged(records: pa.Table, trusted: Sequence[str]) -> NDArray[np.bool_]:
    return ~are_attacks(records) & ~are_trusted(records, trusted)


def _learned_from(rows: pa.ChunkedArray, batch: pa.Table) -> pa.Table:
    batch = batch.filter(pc.is_in(batch["row"], value_set=rows.combine_chunks()))
    return batch.select(["id", "seed_id", "unsafe"]).append_column("text", pa.array(_texts(batch), pa.string()))


def _texts(batch: pa.Table) -> list[str]:
    texts = map(joined, batch["text"].to_pylist(), batch["response"].to_pylist())
    return [text[:_LONGEST] for text in texts]


def _features(encoder: StaticEncoder | SharedEmbedder, texts: Sequence[str]) -> csr_array:
    """Return hashed words and pairs of words, and the embedding [texts, features]."""
    words = _WORDS.transform([*texts, ""])[: len(texts)]  # it refuses to transform nothing
    return csr_array(hstack([words, csr_array(encoder.encode(texts) * _EMBEDDED)]))


def _fitted(features: csr_array, labels: NDArray[np.bool_], folds: NDArray[np.int64], fold: int) -> NDArray[np.float64]:
    """Return the weights of the features, and the bias, of a classifier that has not seen this fold."""
    learned = np.flatnonzero(folds != fold)
    with threadpool_limits(1):  # several threads add in another order, which shows in the last digits
        model = LogisticRegression(C=_STRENGTH, max_iter=300).fit(features[learned], labels[learned])
    return np.append(model.coef_[0], model.intercept_)


def _scored(
    encoder: StaticEncoder | SharedEmbedder, weights: NDArray[np.float64], trusted: Sequence[str], batch: pa.Table
) -> pa.Table:
    """Return row, id, unsafe and probability of being unsafe of the records that are judged.

    Args:
        encoder: the one that the classifiers learned with.
        weights: of the classifier that has not seen the fold, for each fold [folds, features + 1].
        trusted: starts of sources.
        batch: any records.
    """
    batch = batch.filter(pa.array(_judged(batch, trusted)))
    logits = _features(encoder, _texts(batch)) @ weights[:, :-1].T + weights[:, -1]
    unseen = logits[np.arange(len(batch)), folds_of(batch["seed_id"].to_pylist())]
    return batch.select(["row", "id", "unsafe"]).append_column("probability", pa.array(expit(unseen), pa.float64()))


def _dropping(scored: pa.Table, least: float) -> Judge:
    """Return the judge of what `_scored` returned, sorted by id.

    Args:
        scored: row, unsafe, probability of being unsafe.
        least: probability that the other label must have.
    """
    from cleanlab.filter import find_label_issues  # takes seconds, and the driver alone needs it

    labels, unsafe = scored["unsafe"].to_numpy().astype(np.int64), scored["probability"].to_numpy()
    if len(np.unique(labels)) < 2 or np.mean((unsafe > 0.5) == labels) < UNDERSTOOD:
        return keep_all
    issues = find_label_issues(labels, np.stack([1 - unsafe, unsafe], axis=1), n_jobs=1)
    other = np.where(labels == 1, 1 - unsafe, unsafe)
    dropped = np.flatnonzero(issues & (other >= least))
    evidence = [f"P({'safe' if labels[i] else 'unsafe'}) {other[i]:.2f}" for i in dropped]
    return _judge(scored["row"].take(pa.array(dropped)), evidence)


def _judge(rows: pa.ChunkedArray, evidence: Sequence[str]) -> ByRow:
    reasons = pa.array(["label noise"] * len(evidence), pa.string())
    return ByRow(pa.table({"row": rows, "reason": reasons, "evidence": pa.array(evidence, pa.string())}))

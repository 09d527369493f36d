"""What is measured of attacks: the target's verdict, meaning, fluency and embedding, by models of one process."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from guardrail.embedding import Embedder
from guardrail.guard import Guard
from guardrail.intent import IntentModel, TokenEncoder, sentence_embedding
from guardrail.likelihood import LanguageModel
from guardrail.models import resolve
from guardrail.remote import RemoteGuard
from guardrail.targets import known_scores, open_guard, unsafe_scores
from guardrail.taxonomy import UNSAFE

_LEAST_LIKELY = 5  # the least likely one in so many tokens counts


@dataclasses.dataclass(frozen=True)
class Meaning:
    """What n attacks say, beside their goals.

    Attributes:
        intent: P(still the request of its goal), [n].
        similarity: cosine of attack and goal by the intent model's encoder, on which its floor was set, [n]; 0 where
            one of them is too long for it.
        embeddings: L2-normalised, [n, d].
    """

    intent: np.ndarray
    similarity: np.ndarray
    embeddings: np.ndarray


class Scorer:
    """The models that score attacks; the target can be exchanged, the rest stays.

    Args:
        embedder: bundled name, directory or hub id of the sentence encoder.
        reference: bundled name, directory or hub id of the causal model that judges fluency.
        intent_model: "embedded", or the directory of an intent-consistency model.
    """

    def __init__(self, embedder: str, reference: str, intent_model: str) -> None:
        torch.set_num_threads(os.cpu_count() or 1)  # scoring, generation and update take turns on a machine
        self.embedder = Embedder(resolve(embedder))
        self.reference = LanguageModel(reference)
        self.intent = IntentModel.from_pretrained(intent_model)
        self._one_encoder = resolve(embedder) == self.intent.encoder.source

    def set_target(self, target: str, verdicts: Path) -> None:
        """Attack a guard, by its directory or URL, from now on; a service's verdicts are kept in the folder."""
        self.target = open_guard(target)
        if isinstance(self.target, RemoteGuard):
            self.target.remember(verdicts)
        # Where a service decides is not told: rewards take the middle, successes its word.
        self.threshold = self.target.card.thresholds[UNSAFE] if isinstance(self.target, Guard) else 0.5

    def meaning(self, goals: Sequence[str], attacks: Sequence[str]) -> Meaning:
        """Return what attacks say, each beside the goal at the same place."""
        features = self.intent.encoder.encode([*goals, *attacks])
        places = {text: i for i, text in enumerate(dict.fromkeys([*attacks, *goals]))}
        nothing = torch.zeros(self.intent.encoder.features // len(TokenEncoder.LAYERS))
        vectors = torch.stack([sentence_embedding(features[t]) if t in features else nothing for t in places]).numpy()
        of_goals, of_attacks = ([places[text] for text in texts] for texts in (goals, attacks))
        distinct = list(dict.fromkeys(attacks))
        return Meaning(
            intent=self.intent.judged(goals, attacks, features),
            similarity=(vectors[of_attacks] * vectors[of_goals]).sum(axis=1),
            embeddings=self._embeddings(distinct, vectors[: len(distinct)], features)[of_attacks],
        )

    def _embeddings(self, texts: Sequence[str], read: np.ndarray, features: Mapping[str, torch.Tensor]) -> np.ndarray:
        """Return embeddings [n, d]; what the intent model has `read` [n, d] is not read again by the same encoder."""
        if not self._one_encoder:
            return self.embedder.encode(texts)
        embeddings = read.copy()
        if unread := [i for i, text in enumerate(texts) if text not in features]:
            embeddings[unread] = self.embedder.encode([texts[i] for i in unread])
        return embeddings

    def verdicts(self, attacks: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the target's probability of "unsafe" and its decision, each [n]; see `unsafe_scores`."""
        return unsafe_scores(self.target, attacks)

    def known(self, attacks: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return what a target that has failed said before, in the same form; see `known_scores`."""
        return known_scores(self.target, attacks)

    def fluency(self, texts: Sequence[str]) -> np.ndarray:
        """Return Min-K: the mean log-probability of each text's least likely fifth of tokens, [n]; of no text, -inf.

        Source: Shi et al., "Detecting Pretraining Data from Large Language Models", arXiv 2310.16789, used here as a
        floor on fluency: gibberish has tokens that nothing before them led to.
        """
        # What a document starts with, or after.
        start = self.reference.tokenizer.bos_token_id
        start = self.reference.tokenizer.eos_token_id if start is None else start
        found = self.reference.log_probabilities(texts, start)
        least = (np.sort(values)[: max(1, len(values) // _LEAST_LIKELY)] for values in found)
        return np.array([values.mean() if len(values) else -np.inf for values in least], dtype=float)

"""The intent-consistency model: does a rewriting still ask for what its goal asks? A classifier of pairs.

The frozen bundled encoder reads goal and rewriting apart; a small head aligns their tokens and compares what it aligned
(decomposable attention, arXiv 1606.01933, and ESIM, arXiv 1609.06038), several heads vote. Similarity and overlap look
at what two texts have in common; this looks at what is different. `jobs/train_intent.py` trains it on the pairs of
guardrail/intent_pairs.py, and the heads ship with rayguard.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from scipy.special import expit
from torch import nn
from transformers import AutoModel, AutoTokenizer

from guardrail.batching import token_batches
from guardrail.fidelity import content_overlap, turned
from guardrail.models import resolve

EMBEDDED = "embedded"
CARD_FILE = "card.json"
WEIGHTS_FILE = "heads.safetensors"
HARM = "harm"  # beside the heads' weights
WINDOW = 128  # tokens of a text; a longer one cannot be judged
_TOKENS_PER_BATCH = 4096
_PAIRS_PER_BATCH = 128
FACTS = 5  # numbers of a pair that the rules see
SIMILARITY = 4  # which of them is the cosine


@dataclasses.dataclass(frozen=True)
class IntentCard:
    """What was trained.

    Attributes:
        base: encoder: bundled name, directory or hub id.
        width: of the heads.
        heads: how many vote.
        threshold: probability from which a label counts as kept.
        min_similarity: cosine of the embeddings under which it never does.
        max_harm: probability of harm over which a text is taken to ask for some.
        figures: what was trained on, and what was measured on each held-out file.
    """

    base: str
    width: int
    heads: int
    threshold: float
    min_similarity: float
    max_harm: float
    figures: dict[str, Any]


class AlignmentHead(nn.Module):
    """Aligns the tokens of two texts, compares them, and says how likely both ask for the same.

    Args:
        features: numbers of a token.
        width: of the head.
        dropout: while training.
    """

    def __init__(self, features: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(features)
        self.project = nn.Linear(features, width)
        self.attend = nn.Linear(width, width)
        self.compare = nn.Sequential(nn.Linear(4 * width, width), nn.GELU(), nn.Dropout(dropout))
        self.mix = nn.Sequential(nn.Conv1d(width, width, 5, padding=2), nn.GELU(), nn.Dropout(dropout))
        self.decide = nn.Sequential(
            nn.Linear(4 * width + FACTS, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, 1)
        )

    def forward(
        self,
        goals: torch.Tensor,
        goal_mask: torch.Tensor,
        attacks: torch.Tensor,
        attack_mask: torch.Tensor,
        facts: torch.Tensor,
    ) -> torch.Tensor:
        """Return logits [pairs]; texts are [pairs, tokens, features], masks bool [pairs, tokens], facts [pairs, 5]."""
        goals, attacks = (nn.functional.gelu(self.project(self.dropout(self.norm(x)))) for x in (goals, attacks))
        compared = [
            self._compared(goals, goal_mask, attacks, attack_mask),
            self._compared(attacks, attack_mask, goals, goal_mask),
            facts,
        ]
        return self.decide(torch.cat(compared, dim=-1))[:, 0]

    def _compared(
        self, text: torch.Tensor, mask: torch.Tensor, other: torch.Tensor, other_mask: torch.Tensor
    ) -> torch.Tensor:
        """Return what a text's tokens are beside those of the other that they are aligned with, [pairs, 2 width]."""
        scores = self.attend(text) @ self.attend(other).transpose(1, 2) * (3 / text.shape[-1] ** 0.5)
        aligned = torch.softmax(scores.masked_fill(~other_mask[:, None], -1e9), dim=-1) @ other
        compared = self.compare(torch.cat([text, aligned, text - aligned, text * aligned], dim=-1)) * mask[..., None]
        tokens = compared + self.mix(compared.transpose(1, 2)).transpose(1, 2)
        highest = tokens.masked_fill(~mask[..., None], -1e4).amax(dim=1)
        mean = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return torch.cat([highest, mean], dim=-1)


class TokenEncoder:
    """The frozen encoder: features of each token from its embedding, middle and last layer."""

    LAYERS = (0.0, 0.5, 1.0)  # how far up the encoder

    def __init__(self, base: str) -> None:
        self.source = resolve(base)
        self.tokenizer = AutoTokenizer.from_pretrained(self.source)
        self.model = AutoModel.from_pretrained(self.source, dtype=torch.float32).eval()
        self.features = self.model.config.hidden_size * len(self.LAYERS)
        self.window = min(WINDOW, getattr(self.model.config, "max_position_embeddings", WINDOW))

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return the features of each distinct text, float16 [tokens, features]; of those that fit the window."""
        distinct = list(dict.fromkeys(texts))
        ids = self.tokenizer(distinct)["input_ids"] if distinct else []
        lengths = [len(row) for row in ids]
        order = sorted((i for i in range(len(ids)) if lengths[i] <= self.window), key=lambda i: lengths[i])
        found = {}
        for batch in token_batches(order, lengths, _TOKENS_PER_BATCH):
            padded = self.tokenizer.pad({"input_ids": [ids[i] for i in batch]}, return_tensors="pt")
            hidden = self.model(**padded, output_hidden_states=True).hidden_states
            states = torch.cat([hidden[int(up * (len(hidden) - 1))] for up in self.LAYERS], dim=-1).half()
            for row, index in enumerate(batch):
                found[distinct[index]] = states[row, : lengths[index]].clone()
        return found


def mean_state(tokens: torch.Tensor) -> torch.Tensor:
    """Return the mean of a text's tokens' features, float32 [features]."""
    return tokens.float().mean(dim=0)


def sentence_embedding(tokens: torch.Tensor) -> torch.Tensor:
    """Return the sentence embedding (mean pooling, L2-normalised, float32 [d]) of a text by its tokens' features."""
    width = tokens.shape[1] // len(TokenEncoder.LAYERS)
    return nn.functional.normalize(tokens[:, -width:].float().mean(dim=0), dim=0)


def pair_batch(
    goals: Sequence[str], attacks: Sequence[str], features: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """Return the arguments of `AlignmentHead` for pairs of texts that have features."""
    of_goals, of_attacks = ([features[text] for text in texts] for texts in (goals, attacks))
    facts = [_facts(*pair) for pair in zip(goals, attacks, of_goals, of_attacks, strict=True)]
    return (*_padded(of_goals), *_padded(of_attacks), torch.tensor(facts))


def _facts(goal: str, attack: str, of_goal: torch.Tensor, of_attack: torch.Tensor) -> list[float]:
    """Return what the rules see of a pair: content overlap both ways, words that turn it, cosine of the embeddings."""
    similarity = (sentence_embedding(of_goal) @ sentence_embedding(of_attack)).item()
    overlaps = content_overlap(goal, attack), content_overlap(attack, goal)
    return [*overlaps, *map(float, turned(goal, attack)), similarity]


def _padded(features: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return texts' features as one float32 batch [texts, tokens, features] and its mask."""
    batch = nn.utils.rnn.pad_sequence([each.float() for each in features], batch_first=True)
    lengths = torch.tensor([len(each) for each in features])
    return batch, torch.arange(batch.shape[1])[None] < lengths[:, None]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the label gate goes by: the least intent and similarity of rewritings, and the most harm of what frames."""

    min_intent: float
    min_similarity: float
    max_harm: float


class IntentModel:
    """A loaded intent-consistency model.

    Args:
        encoder: that the heads were trained on.
        heads: that vote.
        harm: weights of a text's mean state and the bias of the classifier of harm, float32 [features + 1].
        limits: its own.
    """

    def __init__(
        self, encoder: TokenEncoder, heads: Sequence[AlignmentHead], harm: torch.Tensor, limits: Limits
    ) -> None:
        self.encoder = encoder
        self.heads = [head.eval() for head in heads]
        self.harm = harm
        self.limits = limits

    @classmethod
    def from_pretrained(cls, name: str = EMBEDDED) -> "IntentModel":
        """Load "embedded" or a directory that `jobs/train_intent.py` wrote.

        Raises:
            ValueError: the directory holds no such model.
        """
        directory = _embedded() if name == EMBEDDED else Path(name)
        try:
            written = json.loads((directory / CARD_FILE).read_text())
            if "threshold" in written and "max_harm" not in written:
                raise ValueError("it is of an earlier version, without a classifier of harm; train it anew")
            card = IntentCard(**written)
            weights = load_file(directory / WEIGHTS_FILE)
            harm = weights.pop(HARM)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{directory} holds no intent model: cannot read it ({error})") from error
        encoder = TokenEncoder(card.base)
        heads = []
        for index in range(card.heads):
            head = AlignmentHead(encoder.features, card.width)
            prefix = f"{index}."
            head.load_state_dict(
                {key.removeprefix(prefix): value.float() for key, value in weights.items() if key.startswith(prefix)}
            )
            heads.append(head)
        return cls(encoder, heads, harm.float(), Limits(card.threshold, card.min_similarity, card.max_harm))

    def kept_probability(self, goals: Sequence[str], attacks: Sequence[str], *, floored: bool = False) -> np.ndarray:
        """Return the probability that each attack still asks for what its goal asks, [n]; 0 for what is too long.

        `floored` makes it 0 under `min_similarity`, too: far from all it was trained on, the model guesses.
        """
        return self.judged(goals, attacks, self.encoder.encode([*goals, *attacks]), floored=floored)

    def asks_harm(self, texts: Sequence[str]) -> np.ndarray:
        """Return the probability that each text asks for, or means, harm by itself, [n]; 1 for what is too long."""
        features = self.encoder.encode(texts)
        logits = [
            float(self.harm[:-1] @ mean_state(features[text]) + self.harm[-1]) if text in features else np.inf
            for text in texts
        ]
        return expit(np.array(logits, dtype=float))

    @torch.inference_mode()
    def judged(
        self, goals: Sequence[str], attacks: Sequence[str], features: dict[str, torch.Tensor], *, floored: bool = False
    ) -> np.ndarray:
        """Return what `kept_probability` does, from features that `TokenEncoder.encode` returned."""
        result = np.zeros(len(goals))
        for batch in _batches([i for i in range(len(goals)) if goals[i] in features and attacks[i] in features]):
            arguments = pair_batch([goals[i] for i in batch], [attacks[i] for i in batch], features)
            probabilities = torch.sigmoid(torch.stack([head(*arguments) for head in self.heads]).mean(dim=0))
            if floored:
                probabilities *= arguments[-1][:, SIMILARITY] >= self.limits.min_similarity
            result[batch] = probabilities.double().numpy()
        return result


def _batches(indices: Sequence[int]) -> Iterator[list[int]]:
    for start in range(0, len(indices), _PAIRS_PER_BATCH):
        yield list(indices[start : start + _PAIRS_PER_BATCH])


def _embedded() -> Path:
    return Path(str(resources.files("guardrail").joinpath("intent_model")))

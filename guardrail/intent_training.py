"""Training the intent-consistency model, and what it is worth beside the rules it replaces."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, precision_recall_curve
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from guardrail.embedding import Embedder
from guardrail.fidelity import content_overlap, polarity_flipped
from guardrail.intent import (
    CARD_FILE,
    HARM,
    WEIGHTS_FILE,
    AlignmentHead,
    IntentCard,
    IntentModel,
    Limits,
    TokenEncoder,
    mean_state,
    pair_batch,
)
from guardrail.intent_pairs import Pair
from guardrail.models import resolve
from guardrail.seeds import embedded_seeds, embedded_texts

_LEAST_OVERLAP = 0.3  # of the rules
_FRAME = 200  # characters
_AT_ONCE = 500  # texts
_STRENGTH = 0.01  # inverse regularisation


class IntentTrainingConfig(BaseModel):
    """How the intent-consistency model is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str = Field("bundled:all-minilm-l6-v2", description="encoder: bundled name, directory or hub id")
    width: int = Field(128, ge=8, description="of a head")
    heads: int = Field(2, ge=1, description="that vote, each trained from another start")
    epochs: int = Field(14, ge=1, description="passes over the pairs")
    learning_rate: float = Field(1e-3, gt=0, description="peak of a one-cycle schedule")
    weight_decay: float = Field(0.05, ge=0, description="AdamW")
    dropout: float = Field(0.3, ge=0, lt=1, description="on features and within the head")
    batch: int = Field(64, ge=1, description="pairs")
    template_weight: float = Field(0.3, ge=0, description="of a pair that a template made, beside one that was read")
    attacker_weight: float = Field(2.0, ge=0, description="of a pair that an attacker wrote: what the gate will see")
    validation: float = Field(0.15, gt=0, lt=0.5, description="share of the goals whose pairs set the threshold")
    precision: float = Field(0.9, gt=0, lt=1, description="that the threshold must reach on these pairs")
    min_similarity: float = Field(0.8, ge=-1, le=1, description="cosine under which no label counts as kept")
    harm_texts: int = Field(8000, ge=10, description="embedded seeds and texts, of each, that show what asks for harm")
    harm_fpr: float = Field(0.2, gt=0, lt=1, description="share of the benign of them that is taken to")


def train_intent(
    config: IntentTrainingConfig, pairs: Sequence[Pair], output: Path, seed: int, progress: Callable[[str], None]
) -> IntentModel:
    """Train on pairs and write heads and `card.json` to `output`, whole or not at all.

    Args:
        config: how.
        pairs: all there is to train on; those of some goals set the threshold instead.
        output: directory to write.
        seed: decides split, order, dropout and the new weights.
        progress: called with a line after each epoch.

    Raises:
        ValueError: the pairs have one label only, or `output` holds something that is no intent model.
    """
    if output.exists() and not (output / CARD_FILE).is_file() and not (output.is_dir() and not any(output.iterdir())):
        raise ValueError(f"{output} exists and is no intent model; give another path, or remove it")
    if len({pair.kept for pair in pairs}) < 2:
        raise ValueError("the intent model needs pairs that are kept and pairs that are not")
    training, validation = _split(pairs, config.validation, seed)
    encoder = TokenEncoder(config.base)
    features = encoder.encode([text for pair in pairs for text in (pair.goal, pair.attack)])
    training = [pair for pair in training if pair.goal in features and pair.attack in features]
    heads = []
    for index in range(config.heads):
        head = _train_head(config, training, features, encoder.features, 1000 * seed + index, progress)
        heads.append(head)
    # As they will be stored: what is measured is what ships.
    weights = {f"{i}.{name}": value.half() for i, head in enumerate(heads) for name, value in head.state_dict().items()}
    for head in heads:
        head.half().float()
    harm, max_harm, of_harm = fit_harm(*_harm_examples(encoder, config.harm_texts, seed), config.harm_fpr)
    weights[HARM] = harm
    model = IntentModel(encoder, heads, harm, Limits(1.0, config.min_similarity, max_harm))
    scores = model.judged([p.goal for p in validation], [p.attack for p in validation], features, floored=True)
    threshold = threshold_for_precision(scores, np.array([p.kept for p in validation]), config.precision)
    model.limits = dataclasses.replace(model.limits, min_intent=threshold)
    figures = {"pairs": len(training), "validation_pairs": len(validation), "harm": of_harm}
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(weights, partial / WEIGHTS_FILE)
    card = IntentCard(config.base, config.width, config.heads, threshold, config.min_similarity, max_harm, figures)
    write_card(partial, card)
    shutil.rmtree(output, ignore_errors=True)
    os.replace(partial, output)
    return model


def write_card(directory: Path, card: IntentCard) -> None:
    """Write `card.json`."""
    (directory / CARD_FILE).write_text(json.dumps(dataclasses.asdict(card), indent=2) + "\n")


def _train_head(
    config: IntentTrainingConfig,
    pairs: Sequence[Pair],
    features: dict[str, torch.Tensor],
    size: int,
    seed: int,
    progress: Callable[[str], None],
) -> AlignmentHead:
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    head = AlignmentHead(size, config.width, config.dropout).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    starts = range(0, len(pairs), config.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.epochs * len(starts)
    )
    for epoch in range(config.epochs):
        order = random.permutation(len(pairs))
        total = 0.0
        for start in starts:
            chosen = [pairs[i] for i in order[start : start + config.batch]]
            arguments = pair_batch([p.goal for p in chosen], [p.attack for p in chosen], features)
            weights = torch.tensor([_weight(pair, config) for pair in chosen])
            truth = torch.tensor([float(p.kept) for p in chosen])
            loss = F.binary_cross_entropy_with_logits(head(*arguments), truth, weights)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        progress(f"head {seed % 1000 + 1}, epoch {epoch + 1} of {config.epochs}: loss {total / len(starts):.3f}")
    return head.eval()


def _weight(pair: Pair, config: IntentTrainingConfig) -> float:
    if pair.from_template:
        return config.template_weight
    return config.attacker_weight if pair.by_attacker else 1.0


def _split(pairs: Sequence[Pair], share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Return pairs to train on and pairs to set the threshold on, of other goals; those of templates set none."""
    goals = sorted({pair.goal for pair in pairs})
    order = np.random.default_rng(seed).permutation(len(goals))
    chosen = {goals[i] for i in order[: round(len(goals) * share)]}
    validation = [pair for pair in pairs if pair.goal in chosen and not pair.from_template]
    return [pair for pair in pairs if pair.goal not in chosen], validation


def _harm_examples(encoder: TokenEncoder, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean states [n, features] of embedded seeds and of texts as short as a frame, `count` of each at most.

    And whether each asks for harm [n].
    """
    texts = [r for r in embedded_texts() if r["response"] is None and len(r["text"]) < _FRAME]
    drawn = [
        pool[i]
        for pool in (embedded_seeds(), texts)
        for i in np.random.default_rng(seed).permutation(len(pool))[:count]
    ]
    found: list[tuple[np.ndarray, bool]] = []
    for start in range(0, len(drawn), _AT_ONCE):  # features of all tokens of all texts would be half a gigabyte
        part = drawn[start : start + _AT_ONCE]
        features = encoder.encode([record["text"] for record in part])
        found += [(mean_state(features[r["text"]]).numpy(), bool(r["unsafe"])) for r in part if r["text"] in features]
    states, unsafe = zip(*found, strict=True)
    return np.stack(states), np.array(unsafe)


def fit_harm(states: np.ndarray, unsafe: np.ndarray, fpr: float) -> tuple[torch.Tensor, float, dict[str, float]]:
    """Fit the classifier of what asks for harm; return weights and bias, the limit on its probability, and figures.

    The limit and the figures are of texts that the classifier had not seen (5-fold cross-validation).

    Args:
        states: mean state of each text [n, features].
        unsafe: whether it asks for harm, [n].
        fpr: share of benign texts over the limit.
    """
    model = make_pipeline(StandardScaler(), LogisticRegression(C=_STRENGTH, max_iter=2000))
    unseen = cross_val_predict(model, states, unsafe, cv=5, method="predict_proba")[:, 1]
    limit = float(np.quantile(unseen[~unsafe], 1 - fpr))
    figures = {
        "texts": len(unsafe),
        "auprc": round(float(average_precision_score(unsafe, unseen)), 4),
        "false_positives": fpr,
        "recall": round(float(np.mean(unseen[unsafe] > limit)), 4),
    }
    scaler, classifier = (step for _, step in model.fit(states, unsafe).steps)
    weights = classifier.coef_[0] / scaler.scale_
    bias = classifier.intercept_[0] - weights @ scaler.mean_
    return torch.tensor(np.append(weights, bias), dtype=torch.float32), limit, figures


def threshold_for_precision(scores: np.ndarray, kept: np.ndarray, precision: float) -> float:
    """Return the lowest threshold that has the precision with at least ten pairs over it; 1 where none has it."""
    precisions, recalls, thresholds = precision_recall_curve(kept, scores)
    enough = recalls[:-1] * kept.sum() >= min(10, kept.sum())
    reached = np.flatnonzero((precisions[:-1] >= precision) & enough)
    return float(thresholds[reached[0]]) if len(reached) else 1.0


def rule_scores(pairs: Sequence[Pair], embedder: str) -> np.ndarray:
    """Return what the rules say of pairs: cosine where overlap and polarity allow it, -1 where not; [n].

    A threshold over it sweeps the similarity, the rules' only graded part.
    """
    encoder = Embedder(resolve(embedder))
    goals, attacks = encoder.encode([p.goal for p in pairs]), encoder.encode([p.attack for p in pairs])
    similarity = (goals * attacks).sum(axis=1)
    allowed = [
        content_overlap(p.goal, p.attack) >= _LEAST_OVERLAP and not polarity_flipped(p.goal, p.attack) for p in pairs
    ]
    return np.where(allowed, similarity, -1.0)


def measured(scores: np.ndarray, kept: np.ndarray, threshold: float) -> dict[str, float]:
    """Return precision and recall at a threshold, and the best precision at recall 0.5 or more, of scores [n]."""
    said = scores >= threshold
    hits = int((said & kept).sum())
    return {
        "precision": hits / max(1, int(said.sum())),
        "recall": hits / max(1, int(kept.sum())),
        "precision_at_recall_0.5": precision_at_recall(scores, kept, 0.5),
    }


def precision_at_recall(scores: np.ndarray, kept: np.ndarray, recall: float) -> float:
    """Return the best precision that scores have at this recall or more."""
    precisions, recalls, _ = precision_recall_curve(kept, scores)
    return float(precisions[recalls >= recall].max())

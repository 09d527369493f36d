"""What training minimises: its targets, the weights of what counts, the loss, and the worst case beside a text."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from guardrail.records import Record

_RAREST = 1e-3  # share that a label is taken to have at least when a training begins

# --- Targets and weights --------------------------------------------------------------------------------------------


def smoothed(targets: np.ndarray, amount: float) -> np.ndarray:
    """Return targets in [0, 1] moved towards 1/2 by `amount` of the way.

    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", arXiv 1512.00567, for the two
    outcomes of each label.
    """
    return (1.0 - amount) * targets + 0.5 * amount


def teacher_scores(records: Sequence[Record], teachers: Sequence[str]) -> np.ndarray:
    """Return the mean of the teachers' scores that each record has, float [n]; NaN where it has none.

    Raises:
        ValueError: a score is no probability, or no record has one of a teacher.
    """
    columns = np.array([[r["scores"].get(name, np.nan) for name in teachers] for r in records], dtype=float)
    columns = columns.reshape(len(records), len(teachers))
    for name, column in zip(teachers, columns.T, strict=True):
        known = column[~np.isnan(column)]
        if not len(known):
            raise ValueError(f"training.teachers names {name!r}, but no record has such a score")
        if known.min() < 0 or known.max() > 1:
            raise ValueError(
                f"scores of the teacher {name!r} lie between {known.min()} and {known.max()}, not in [0, 1]"
            )
    counts = (~np.isnan(columns)).sum(axis=1)
    return np.where(counts > 0, np.nansum(columns, axis=1) / np.maximum(counts, 1), np.nan)


def distilled(targets: np.ndarray, teachers: np.ndarray, share: float) -> np.ndarray:
    """Return targets [n] mixed with what teachers say [n]; those of which they say nothing (NaN) stay.

    Cross-entropy is linear in its target: this is the loss of both, weighted. Source: Hinton et al., "Distilling the
    Knowledge in a Neural Network", arXiv 1503.02531, at temperature 1.
    """
    return np.where(np.isnan(teachers), targets, (1.0 - share) * targets + share * np.nan_to_num(teachers))


def balanced(records: Sequence[Record], power: float) -> np.ndarray:
    """Return a weight for each record, float [n] of mean 1: as rare as its source and label are, to a power.

    Power 0 leaves records as they are, 1/2 is the inverse square root of the frequency, 1 lets groups weigh the same.
    """
    groups = [(r["source"], r["unsafe"]) for r in records]
    counts = Counter(groups)
    weights = np.array([counts[group] ** -power for group in groups])
    return weights / weights.mean()


# --- The loss -------------------------------------------------------------------------------------------------------


class Totals(NamedTuple):
    """Summed weights of records, for the unsafe label and for their categories, over a step's whole batch; both > 0."""

    unsafe: float
    categories: float

    @classmethod
    def of(cls, weights: np.ndarray) -> "Totals":
        """Return the totals of weights [batch, labels]; 1 in the place of 0, where nothing is to be divided."""
        return cls(float(weights[:, 0].sum()) or 1.0, float(weights[:, 1:].mean(axis=1).sum()) or 1.0)


def guard_loss(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, totals: Totals, category_weight: float
) -> torch.Tensor:
    """Return the binary cross-entropy of "unsafe" plus `category_weight` times that of the categories.

    Each is a weighted sum over the total weight of the step, so that parts of a batch add up to the mean of the whole.
    A record's categories are added up: a mean over so many, most of which are rare, would teach a guard none of them.

    Args:
        logits, targets, weights: [part of the batch, labels], "unsafe" first; weight 0 masks what is not known.
        totals: of the whole batch.
        category_weight: of a record's categories together beside "unsafe".
    """
    entropy = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none") * weights
    return entropy[:, 0].sum() / totals.unsafe + category_weight * entropy[:, 1:].sum() / totals.categories


@torch.no_grad()
def start_at_priors(
    model: torch.nn.Module, targets: np.ndarray, weights: np.ndarray, sample: Mapping[str, torch.Tensor]
) -> None:
    """Have a new head begin with how frequent each label is: to learn that would take most steps of a training.

    A head without a bias (those of decoders) has it along what all texts have in common: their mean state, which is
    long beside what tells them apart.
    Source: Lin et al., "Focal Loss for Dense Object Detection", arXiv 1708.02002, section 4.1.

    Args:
        model: a classifier; the last of its layers that has an output for each label is the head.
        targets, weights: of all that is trained on, [n, labels].
        sample: some texts, as the model takes them.
    """
    labels = targets.shape[1]
    heads = [part for part in model.modules() if isinstance(part, torch.nn.Linear) and part.out_features == labels]
    if not heads:
        return
    head = heads[-1]
    shares = (targets * weights).sum(axis=0) / np.maximum(weights.sum(axis=0), 1e-9)
    shares = np.clip(shares, _RAREST, 1 - _RAREST)
    prior = torch.from_numpy(np.log(shares / (1 - shares))).to(head.weight)
    states: list[torch.Tensor] = []
    handle = head.register_forward_hook(lambda _module, inputs, _output: states.append(inputs[0]))
    try:
        logits = model(**sample).logits.mean(dim=0)
    finally:
        handle.remove()
    if head.bias is not None:
        head.bias += prior - logits
        return
    last = sample["attention_mask"].cumsum(dim=1).argmax(dim=1)  # a decoder's state of a text is that of its last token
    mean = states[0][torch.arange(len(last)), last].mean(dim=0)
    head.weight += torch.outer(prior - logits, mean / mean.dot(mean))


# --- Adversarial training -------------------------------------------------------------------------------------------


def worst_step(embeddings: torch.Tensor, gradient: torch.Tensor, mask: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Return the step that raises a text's loss most, to first order, among those as long as its embeddings x epsilon.

    Source: Miyato et al., "Adversarial Training Methods for Semi-Supervised Text Classification", arXiv 1605.07725,
    equation 5; the length is relative to the text's, where they normalise the embeddings.

    Args:
        embeddings, gradient: of the loss by them, [batch, tokens, dim].
        mask: 1 for tokens, 0 for padding, [batch, tokens].
        epsilon: length of the step over that of the text's embeddings, both L2.
    """
    mask = mask[..., None].to(gradient.dtype)
    length, steepness = (torch.linalg.vector_norm(t * mask, dim=(1, 2), keepdim=True) for t in (embeddings, gradient))
    return epsilon * length * gradient * mask / steepness.clamp(min=torch.finfo(gradient.dtype).tiny)


@contextlib.contextmanager
def watched(embedding: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """Yield a list to which each output of the embedding layer is added, to have its gradient after `backward`."""
    outputs: list[torch.Tensor] = []

    def keep(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        output = output if output.requires_grad else output.detach().requires_grad_()  # the layer may be frozen
        output.retain_grad()
        outputs.append(output)
        return output

    handle = embedding.register_forward_hook(keep)
    try:
        yield outputs
    finally:
        handle.remove()


@contextlib.contextmanager
def moved(embedding: torch.nn.Module, step: torch.Tensor) -> Iterator[None]:
    """Add `step` [batch, tokens, dim] to what the embedding layer puts out."""
    handle = embedding.register_forward_hook(lambda _module, _inputs, output: output + step)
    try:
        yield
    finally:
        handle.remove()

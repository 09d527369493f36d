"""What the loop tells Ray's metrics, and so Prometheus, Grafana and the dashboard: one gauge for each figure.

Knows nothing of the loop but the entries of its report and the attackers' iterations.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import ray
from ray.util.metrics import Gauge

_RUN = ("run",)
#: Name and meaning of every metric; a test holds the shipped Grafana dashboard against it.
METRICS: dict[str, tuple[str, tuple[str, ...]]] = {
    "rayguard_round": ("Adversarial round that ended last.", _RUN),
    "rayguard_attack_attempts": ("Attack attempts of the round.", _RUN),
    "rayguard_attack_valid": ("Attempts of the round that kept their label.", _RUN),
    "rayguard_attack_success_rate": ("Successes over valid attempts of the round.", _RUN),
    "rayguard_attack_yield": ("Valid successes over all attempts of the round.", _RUN),
    "rayguard_attack_unique_clusters": ("Clusters among the successes of the round.", _RUN),
    "rayguard_attack_self_bleu": ("Self-BLEU of the successes of the round; 1: all the same.", _RUN),
    "rayguard_attack_mean_distance": ("Mean cosine distance among the successes of the round.", _RUN),
    "rayguard_transforms_misjudged": ("Share of the round's transformed seeds that the guard gets wrong.", _RUN),
    "rayguard_probe_max_abs_logprob_diff": ("Largest |logprob difference| of engine and learner after a sync.", _RUN),
    "rayguard_attack_iteration": ("Policy updates done in the round.", _RUN),
    "rayguard_iteration_yield": ("Valid successes over all attempts of the iteration.", _RUN),
    "rayguard_iteration_success_rate": ("Successes over valid attempts of the iteration.", _RUN),
    "rayguard_iteration_unique_clusters": ("Clusters among the successes of the iteration.", _RUN),
    "rayguard_iteration_self_bleu": ("Self-BLEU of the successes of the iteration; 1: all the same.", _RUN),
    "rayguard_iteration_mean_distance": ("Mean cosine distance among the successes of the iteration.", _RUN),
    "rayguard_reward_part": ("Mean of a part of the reward over the attempts that have it.", (*_RUN, "part")),
    "rayguard_gate_rejections": ("Attempts of the iteration that the gate turned away.", (*_RUN, "reason")),
    "rayguard_archive_size": ("Successes in the archive.", _RUN),
    "rayguard_archive_coverage": ("Share of the archive's category and style cells that hold a success.", _RUN),
    "rayguard_staleness": ("Updates between the weights that sampled and those that are updated.", _RUN),
    "rayguard_learner": ("Term of the last update: KL, entropy, clipped share, ratio, gradient norm.", (*_RUN, "term")),
    "rayguard_tokens_per_second": ("Generated tokens per second of a phase of the iteration.", (*_RUN, "phase")),
    "rayguard_guard_f1": ("F1 of the round's guard on an evaluation set.", (*_RUN, "set")),
    "rayguard_guard_fpr": ("False-positive rate of the round's guard on an evaluation set.", (*_RUN, "set")),
    "rayguard_phase_seconds": ("Seconds that a phase took.", (*_RUN, "phase")),
}
_gauges: dict[str, Gauge] = {}
_reasons: set[str] = set()  # of rejections so far: one that is no more is 0, not what it was
_terms: set[str] = set()  # of updates so far: without an update there are none


def record(name: str, value: float | None, **tags: str) -> None:
    """Set a metric of `METRICS`, to NaN without a value: it is none of before; nothing happens without Ray."""
    if not ray.is_initialized():
        return
    if name not in _gauges:
        description, keys = METRICS[name]
        _gauges[name] = Gauge(name, description=description, tag_keys=keys)
    _gauges[name].set(math.nan if value is None else float(value), tags=tags)


def record_iteration(run: str, iteration: Any, step: int, board: Any) -> None:
    """Set the metrics of one of the attackers' iterations, in Ray and on a TensorBoard.

    Args:
        run: name of the run.
        iteration: an `actors.adversary.Iteration`.
        step: its number over all rounds.
        board: a TensorBoard `SummaryWriter`.
    """
    _reasons.update(iteration.summary.rejected)
    _terms.update(iteration.learner)
    _show(run, _of_iteration(iteration), step, board)


def record_round(run: str, entry: Mapping[str, Any], board: Any) -> None:
    """Set the metrics of a round from its entry in `report.json`, likewise."""
    _show(run, _of_round(entry), entry["round"], board)


def _show(run: str, figures: Iterator[tuple[str, str, float | None]], step: int, board: Any) -> None:
    for name, tag, value in figures:
        key = METRICS[name][1][-1]
        record(name, value, run=run, **({key: tag} if tag else {}))
        if value is not None:
            board.add_scalar(name.removeprefix("rayguard_") + (f"/{tag}" if tag else ""), value, step)
    board.flush()


def _of_iteration(iteration: Any) -> Iterator[tuple[str, str, float | None]]:
    """Yield metric, tag and value."""
    summary = iteration.summary
    tagged = {
        "rayguard_reward_part": summary.parts,
        "rayguard_gate_rejections": dict.fromkeys(_reasons, 0) | summary.rejected,
        "rayguard_learner": dict.fromkeys(_terms) | iteration.learner,
        "rayguard_tokens_per_second": {
            phase: summary.tokens / max(seconds, 1e-9) for phase, seconds in iteration.seconds.items()
        },
    }
    for name, values in tagged.items():
        for tag, value in values.items():
            yield name, tag, value
    yield "rayguard_iteration_yield", "", summary.successes / summary.attempts
    yield "rayguard_iteration_success_rate", "", summary.successes / summary.valid if summary.valid else None
    for name, value in summary.diversity.items():
        yield f"rayguard_iteration_{name}", "", value
    yield "rayguard_archive_size", "", summary.archive
    yield "rayguard_archive_coverage", "", summary.coverage
    yield "rayguard_staleness", "", summary.staleness
    yield "rayguard_probe_max_abs_logprob_diff", "", iteration.sync.get("probe_max_abs_logprob_diff")


def _of_round(entry: Mapping[str, Any]) -> Iterator[tuple[str, str, float | None]]:
    """Yield metric, tag and value."""
    attacks = entry["attacks"]
    yield "rayguard_round", "", entry["round"]
    for name in ("attempts", "valid", "success_rate", "yield"):
        yield f"rayguard_attack_{name}", "", attacks[name]
    for name in ("unique_clusters", "self_bleu", "mean_distance"):
        yield f"rayguard_attack_{name}", "", attacks["diversity"][name]
    if transforms := entry["transforms"]:
        yield "rayguard_transforms_misjudged", "", transforms["misjudged"] / max(1, transforms["tried"])
    for name, metrics in entry["evaluation"].items():
        yield "rayguard_guard_f1", name, metrics["f1"]
        yield "rayguard_guard_fpr", name, metrics["fpr"]
    for name, phase in entry["phases"].items():
        yield "rayguard_phase_seconds", name, phase["seconds"]

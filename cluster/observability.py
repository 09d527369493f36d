"""What the loop tells Ray's metrics, and so Prometheus, Grafana and the dashboard: one gauge for each figure.

Knows nothing of the loop but the entries of its report and the attackers' iterations.
"""

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
    "rayguard_probe_max_abs_logprob_diff": ("Largest |logprob difference| of engine and learner after a sync.", _RUN),
    "rayguard_attack_iteration": ("Policy updates done in the round.", _RUN),
    "rayguard_iteration_yield": ("Valid successes over all attempts of the iteration.", _RUN),
    "rayguard_reward_part": ("Mean of a part of the reward over the iteration's attempts.", (*_RUN, "part")),
    "rayguard_gate_rejections": ("Attempts of the iteration that the gate turned away.", (*_RUN, "reason")),
    "rayguard_archive_size": ("Successes in the archive.", _RUN),
    "rayguard_archive_coverage": ("Share of the archive's category and style cells that hold a success.", _RUN),
    "rayguard_staleness": ("Updates between the weights that sampled and those that are updated.", _RUN),
    "rayguard_learner": ("Term of the last update: KL, entropy, clipped share, ratio, gradient norm.", (*_RUN, "term")),
    "rayguard_tokens_per_second": ("Generated tokens per second of the generate phase.", _RUN),
    "rayguard_guard_f1": ("F1 of the round's guard on an evaluation set.", (*_RUN, "set")),
    "rayguard_guard_fpr": ("False-positive rate of the round's guard on an evaluation set.", (*_RUN, "set")),
    "rayguard_phase_seconds": ("Seconds that a phase took.", (*_RUN, "phase")),
}
_gauges: dict[str, Gauge] = {}


def record(name: str, value: float | None, **tags: str) -> None:
    """Set a metric of `METRICS`; nothing happens without a value, or without Ray."""
    if value is None or not ray.is_initialized():
        return
    if name not in _gauges:
        description, keys = METRICS[name]
        _gauges[name] = Gauge(name, description=description, tag_keys=keys)
    _gauges[name].set(float(value), tags=tags)


def record_iteration(run: str, iteration: Any, step: int, board: Any) -> None:
    """Set the metrics of one of the attackers' iterations, in Ray and on a TensorBoard.

    Args:
        run: name of the run.
        iteration: an `actors.adversary.Iteration`.
        step: its number over all rounds.
        board: a TensorBoard `SummaryWriter`.
    """
    for name, tag, value in _figures(iteration):
        key = METRICS[name][1][-1]
        record(name, value, run=run, **({key: tag} if tag else {}))
        board.add_scalar(name.removeprefix("rayguard_") + (f"/{tag}" if tag else ""), value, step)
    board.flush()


def _figures(iteration: Any) -> Iterator[tuple[str, str, float]]:
    """Yield metric, tag and value."""
    summary = iteration.summary
    tagged = {
        "rayguard_reward_part": summary.parts,
        "rayguard_gate_rejections": summary.rejected,
        "rayguard_learner": iteration.learner,
    }
    for name, values in tagged.items():
        for tag, value in values.items():
            yield name, tag, value
    yield "rayguard_iteration_yield", "", summary.successes / summary.attempts
    yield "rayguard_archive_size", "", summary.archive
    yield "rayguard_archive_coverage", "", summary.coverage
    yield "rayguard_staleness", "", summary.staleness
    yield "rayguard_tokens_per_second", "", summary.tokens / max(iteration.seconds["generate"], 1e-9)
    if iteration.sync:
        yield "rayguard_probe_max_abs_logprob_diff", "", iteration.sync["probe_max_abs_logprob_diff"]


def record_round(run: str, entry: Mapping[str, Any]) -> None:
    """Set the metrics of a round from its entry in `report.json`."""
    attacks, sync = entry["attacks"], entry["sync"]
    record("rayguard_round", entry["round"], run=run)
    record("rayguard_attack_attempts", attacks["attempts"], run=run)
    record("rayguard_attack_valid", attacks["valid"], run=run)
    record("rayguard_attack_success_rate", attacks["success_rate"], run=run)
    record("rayguard_attack_yield", attacks["yield"], run=run)
    record("rayguard_attack_unique_clusters", attacks["diversity"]["unique_clusters"], run=run)
    record("rayguard_probe_max_abs_logprob_diff", sync["probe_max_abs_logprob_diff"], run=run)
    for name, metrics in entry["evaluation"].items():
        record("rayguard_guard_f1", metrics["f1"], run=run, set=name)
        record("rayguard_guard_fpr", metrics["fpr"], run=run, set=name)
    for name, phase in entry["phases"].items():
        record("rayguard_phase_seconds", phase["seconds"], run=run, phase=name)

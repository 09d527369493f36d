"""What differs between two runs: the figures of their reports, and their settings."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from guardrail.metrics import wilson

METRICS = ("f1", "precision", "recall", "fpr", "auprc", "auroc", "recall_at_1pct_fpr", "ece")

_LESS_IS_BETTER = frozenset({"fpr", "ece"})

Row = dict[str, Any]


def compare(this: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of two `report.json`s side by side: `rounds`, `hardening` and `seconds`, a list of rows each.

    `evaluation` has, by set, a row for each of `METRICS` of the final guards. A row has its `name`, `this` and `other`
    (None where a run lacks it), `change` (this less the other), and `better`: whether that is for the better. That is
    None where there is no better side, where the 95% intervals of the two touch or are not known, and where two sets
    of a name differ in size.
    """
    return {
        "rounds": list(_rounds(this, other)),
        "evaluation": _evaluation(final_round(this)["evaluation"], final_round(other)["evaluation"]),
        "hardening": list(_hardening(this["hardening"], other["hardening"])),
        "seconds": list(_seconds(this, other)),
    }


def differing(this: Mapping[str, Any], other: Mapping[str, Any]) -> list[Row]:
    """Return the settings or facts, by name, whose values differ; None where a run has no such one."""
    keys = sorted(this.keys() | other.keys())
    return [
        {"name": key, "this": this.get(key), "other": other.get(key)} for key in keys if this.get(key) != other.get(key)
    ]


def final_round(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the round whose guard is in use at the end of a run: the last one promoted."""
    last: dict[str, Any] = [entry for entry in report["rounds"] if entry["promoted"]][-1]
    return last


def _rounds(this: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[Row]:
    runs = [{entry["round"]: entry["attacks"] for entry in run["rounds"]} for run in (this, other)]
    for index in sorted(runs[0].keys() | runs[1].keys()):
        of_both = [run.get(index, {}) for run in runs]
        if not any(attacks.get("attempts") for attacks in of_both):
            continue
        for key, name in (("success_rate", "success rate"), ("yield", "yield")):
            values = [attacks.get(key) for attacks in of_both]
            yield _row(f"round {index}, {name}", *values)


def _evaluation(this: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, list[Row]]:
    return {
        name: [
            _row(
                metric,
                *(run.get(name, {}).get(metric) for run in (this, other)),
                intervals=[(run.get(name, {}).get("intervals") or {}).get(metric) for run in (this, other)],
                sign=_sign(metric) if _one_size(this.get(name), other.get(name)) else 0,
            )
            for metric in METRICS
        ]
        for name in dict.fromkeys([*this, *other])
    }


def _sign(metric: str) -> int:
    return -1 if metric in _LESS_IS_BETTER else 1


def _one_size(this: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    """Whether two sets of a name can be of the same texts: splits of a run, say, are its own."""
    return this is not None and other is not None and all(this.get(k) == other.get(k) for k in ("n", "positives"))


def _hardening(this: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[Row]:
    yield _row("stored attacks", this["stored_attacks"], other["stored_attacks"])
    for goals, seeds, own in (
        ("all goals", "validation", (this, other)),
        ("held-out goals", "held-out", (this["held_out_goals"], other["held_out_goals"])),
    ):
        for guard, title in (("round0", "round-0 guard"), ("final", "final guard")):
            rates = [run[f"success_rate_{guard}_guard"] for run in own]
            counts = [run["stored_attacks"] for run in own]
            intervals = [
                None if rate is None else wilson(round(rate * count), count)
                for rate, count in zip(rates, counts, strict=True)
            ]
            # Each run's own attacks: a guard that stands against weaker ones is no better.
            yield _row(f"success of stored attacks on {goals}, {title}", *rates, intervals=intervals)
            fprs = [run[f"benign_fpr_{guard}_guard"] for run in own]
            yield _row(f"false positives, benign {seeds} seeds, {title}", *fprs)


def _seconds(this: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[Row]:
    yield _row("all", this["run"]["seconds"], other["run"]["seconds"])
    totals = []
    for run in (this, other):
        total: dict[str, float] = {}
        for entry in run["rounds"]:
            for name, phase in entry["phases"].items():
                total[name] = total.get(name, 0.0) + phase["seconds"]
        totals.append(total)
    for name in dict.fromkeys([*totals[0], *totals[1]]):
        yield _row(name, totals[0].get(name), totals[1].get(name))


def _row(
    name: str,
    this: float | None,
    other: float | None,
    *,
    intervals: Sequence[Sequence[float] | None] = (None, None),
    sign: int = 0,
) -> Row:
    """Return a row of `compare`; `sign`: 1 where more is better, -1 where less is, 0 where neither."""
    change = None if this is None or other is None else this - other
    own, others = intervals
    apart = own is not None and others is not None and (own[0] > others[1] or others[0] > own[1])
    better = sign * change > 0 if change and sign and apart else None
    return {"name": name, "this": this, "other": other, "change": change, "better": better}

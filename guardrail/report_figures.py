"""The report's charts: SVG of one panel each, as wide as a phone, in the page's own colours and font."""

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from cycler import cycler
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from sklearn.metrics import precision_recall_curve, roc_curve

from guardrail.calibration import reliability

_BINS = 10  # of a reliability diagram
_POINTS = 200  # most points of a curve: more cannot be seen, and a set of 10,000 items has as many
# matplotlib knows no CSS variables: these stand for them until the SVG is text.
_INK = "#0a0a0a"
_SERIES = tuple(f"#0b0b{number:02x}" for number in range(1, 9))
_STYLE = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    "axes.prop_cycle": cycler(color=_SERIES),
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _INK,
    "grid.alpha": 0.15,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 11,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.parse_math": False,  # names are not formulas
}
_styled = rc_context(_STYLE)


@_styled
def success_by_round(rounds: Sequence[Mapping[str, Any]]) -> str:
    """Return success rate (with its interval) and yield of the report's rounds; empty without a valid attempt."""
    attacked = [entry for entry in rounds if entry["attacks"]["success_rate"] is not None]
    if not attacked:
        return ""
    figure, axes = _panel(xlabel="round", ylim=(0, 1))
    index = [entry["round"] for entry in attacked]
    rates = np.array([entry["attacks"]["success_rate"] for entry in attacked])
    intervals = np.array([entry["attacks"]["interval"] for entry in attacked])
    axes.errorbar(index, rates, yerr=_errors(rates, intervals), marker="o", capsize=4, label="success rate, 95%")
    yields = [entry["attacks"]["yield"] for entry in attacked]
    axes.plot(index, yields, marker="s", ls="--", label="yield")
    axes.set_xticks(index)
    _shares(axes.yaxis)
    axes.legend(reverse=True)
    told = ", ".join(
        f"round {i}: success rate {rate:.1%}, yield {share:.1%}"
        for i, rate, share in zip(index, rates, yields, strict=True)
    )
    return _svg(figure, "success", f"Success rate and yield by round. {told}.")


@_styled
def by_round(values: Mapping[int, float], name: str, *, whole: bool = False) -> str:
    """Return a line of one value, `whole` numbers or not, by round; empty without any."""
    if not values:
        return ""
    figure, axes = _panel(xlabel="round", height=2.4)
    axes.plot(list(values), list(values.values()), marker="o")
    axes.set_xticks(list(values))
    axes.set_ylim(0, max(1e-9, *values.values()) * 1.15)
    if whole:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    told = ", ".join(f"round {index}: {value:.4g}" for index, value in values.items())
    return _svg(figure, name, f"{name} by round. {told}.")


@_styled
def recall_at_low_fpr(first: Mapping[str, Any], final: Mapping[str, Any]) -> str:
    """Return recall at 1% FPR, with intervals where there are any, of the round-0 and the final guard by set.

    Args:
        first, final: metrics by set; sets of one label are left out.
    """
    metric = "recall_at_1pct_fpr"
    names = [name for name in final if final[name].get(metric) is not None and first[name].get(metric) is not None]
    if not names:
        return ""
    figure, axes = _panel(xlim=(0, 1), height=1.0 + 0.55 * len(names))
    for offset, label, metrics in ((-0.12, "round-0 guard", first), (0.12, "final guard", final)):
        values = np.array([metrics[name][metric] for name in names])
        intervals = [(metrics[name].get("intervals") or {}).get(metric) for name in names]
        bounds = np.array([own or [value, value] for own, value in zip(intervals, values, strict=True)])
        rows = np.arange(len(names)) + offset
        axes.errorbar(values, rows, xerr=_errors(values, bounds), fmt="o", capsize=3, label=label)
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    _shares(axes.xaxis)
    figure.legend(loc="outside upper center", ncols=2)
    told = "; ".join(f"{name}: {first[name][metric]:.1%} to {final[name][metric]:.1%}" for name in names)
    return _svg(figure, "recall", f"Recall at 1% false positives, round-0 guard to final guard. {told}.")


# --- of one evaluation set ------------------------------------------------------------------------------------------


Labelled = Mapping[str, tuple[np.ndarray, np.ndarray]]  # by guard: labels, bool [n], and scores in [0, 1], [n]


@_styled
def roc(name: str, guards: Labelled, points: Mapping[str, tuple[float, float]]) -> str:
    """Return the ROC curves of guards on a set of both labels.

    Args:
        name: of the set.
        guards: labels and scores by guard.
        points: by guard, false-positive rate and recall at its threshold.
    """
    figure, axes = _panel(xlabel="false-positive rate", ylabel="recall", xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    axes.axvline(0.01, color=_INK, lw=0.8, ls=":")
    for number, (guard, (unsafe, scores)) in enumerate(guards.items()):
        false_rates, true_rates, _ = roc_curve(unsafe, scores)
        color = _SERIES[number]
        axes.plot(*_thinned(false_rates, true_rates), color=color, label=guard, ls=_dashes(number))
        axes.plot(*points[guard], marker="o", color=color)
    axes.legend(loc="lower right")
    told = "; ".join(f"{guard} recalls {recall:.1%} at {fpr:.1%}" for guard, (fpr, recall) in points.items())
    return _svg(figure, f"roc-{name}", f"ROC curves on {name}. At its threshold: {told} false positives.")


@_styled
def precision_recall(name: str, guards: Labelled, points: Mapping[str, tuple[float, float] | None]) -> str:
    """Return the precision-recall curves of guards on a set of both labels.

    Args:
        name: of the set.
        guards: labels and scores by guard.
        points: by guard, recall and precision at its threshold; None where it flags nothing.
    """
    figure, axes = _panel(xlabel="recall", ylabel="precision", xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    for number, (guard, (unsafe, scores)) in enumerate(guards.items()):
        precisions, recalls, _ = precision_recall_curve(unsafe, scores, drop_intermediate=True)
        color = _SERIES[number]
        axes.plot(*_thinned(recalls, precisions), color=color, label=guard, ls=_dashes(number), drawstyle="steps-post")
        if (point := points[guard]) is not None:
            axes.plot(*point, marker="o", color=color)
    axes.legend(loc="lower left")
    told = "; ".join(f"{guard} {p[1]:.1%} at recall {p[0]:.1%}" for guard, p in points.items() if p is not None)
    return _svg(figure, f"pr-{name}", f"Precision-recall curves on {name}. Precision at the threshold: {told}.")


@_styled
def reliability_diagram(name: str, unsafe: np.ndarray, before: np.ndarray, after: np.ndarray) -> str:
    """Return the share of unsafe items over the mean score of each bin, before and after temperature.

    Args:
        name: of the set.
        unsafe: the true labels, bool [n].
        before, after: scores in [0, 1], [n].
    """
    figure, axes = _panel(xlabel="mean score", ylabel="share unsafe", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.plot([0, 1], [0, 1], color=_INK, lw=0.8, ls=":")
    for number, (label, scores) in enumerate((("before temperature", before), ("after", after))):
        bins = [each for each in reliability(unsafe, scores, _BINS) if each["count"]]
        counts, x, y = (np.array([b[key] for b in bins], float) for key in ("count", "mean_score", "share_unsafe"))
        axes.plot(x, y, color=_SERIES[number], ls=_dashes(number), label=label)
        # Area by count: a bin of three items says little.
        axes.scatter(x, y, s=12 + 160 * counts / len(unsafe), color=_SERIES[number])
    axes.legend(loc="lower right")
    return _svg(figure, f"reliability-{name}", f"Reliability on {name} before and after temperature; dotted: perfect.")


# --- of the run -----------------------------------------------------------------------------------------------------


@_styled
def funnel(stages: Sequence[Mapping[str, Any]], name: str) -> str:
    """Return how many rows curation read, and how many its intake and each stage leave."""
    figure, axes = _panel(height=0.6 + 0.27 * (len(stages) + 1))
    names = ["read", *(stage["stage"] for stage in stages)]
    counts = [stages[0]["in"], *(stage["kept"] for stage in stages)]
    bars = axes.barh(range(len(names)), counts, color=_SERIES[0], height=0.75)
    axes.bar_label(bars, [f"{count:,}" for count in counts], padding=3, fontsize=10)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, max(1, counts[0]) * 1.18)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.grid(visible=False)
    told = ", ".join(f"{stage} {count}" for stage, count in zip(names, counts, strict=True))
    return _svg(figure, f"funnel-{name}", f"Records left after each curation stage, {name}: {told}.")


@_styled
def seconds_by_phase(rounds: Sequence[Mapping[str, Any]]) -> str:
    """Return the minutes of each phase, a bar for each round; parts of a phase (`attack/generate`) are in its own."""
    figure, axes = _panel(ylabel="minutes", xlabel="round")
    index = [entry["round"] for entry in rounds]
    phases = list(dict.fromkeys(name for entry in rounds for name in entry["phases"] if "/" not in name))
    bottom = np.zeros(len(rounds))
    for number, phase in enumerate(phases):
        minutes = np.array([entry["phases"].get(phase, {"seconds": 0.0})["seconds"] / 60 for entry in rounds])
        axes.bar(index, minutes, bottom=bottom, width=0.6, label=phase, color=_SERIES[number % len(_SERIES)])
        bottom += minutes
    axes.set_xticks(index)
    axes.grid(axis="x", visible=False)
    figure.legend(loc="outside upper center", ncols=3)
    told = ", ".join(f"round {i}: {minutes:.1f}" for i, minutes in zip(index, bottom, strict=True))
    return _svg(figure, "time", f"Minutes by round and phase. {told}.")


# --- a panel --------------------------------------------------------------------------------------------------------


def _panel(*, height: float = 3.2, **axes_settings: Any) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.4, height), layout="constrained")
    axes = figure.subplots()
    axes.set(**axes_settings)
    return figure, axes


def _errors(values: np.ndarray, intervals: np.ndarray) -> np.ndarray:
    """Return the distances [2, n] of intervals [n, 2] from values [n]."""
    return np.maximum(0.0, np.stack([values - intervals[:, 0], intervals[:, 1] - values]))


def _shares(axis: Any) -> None:
    axis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _dashes(number: int) -> str:
    return "--" if number == 0 else "-"  # not by colour alone


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    places = np.unique(np.linspace(0, len(x) - 1, min(len(x), _POINTS)).round().astype(int))
    return x[places], y[places]


def _short(name: str) -> str:
    return name if len(name) <= 16 else f"{name[:15]}…"


def _svg(figure: Figure, name: str, alt: str) -> str:
    """Return the figure as an SVG element for an HTML page, said in words by `alt`."""
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": name}):  # ids differ between figures and not between calls
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    used = set(re.findall(r"url\(#([^)]+)\)|xlink:href=\"#([^\"]+)\"", svg))
    kept = {each for pair in used for each in pair}
    svg = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in kept else "", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1", svg)
    for number, color in enumerate(_SERIES, start=1):
        svg = svg.replace(color, f"var(--series-{number})")
    svg = svg.replace(_INK, "currentColor")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(alt)}" ', 1)

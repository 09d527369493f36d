"""The report of a run as one offline HTML page; texts of attacks are in it only where they are given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from guardrail import report_figures as figures
from guardrail.metrics import wilson
from guardrail.report_difference import final_round
from guardrail.report_scores import SetScores


@dataclass(frozen=True)
class Material:
    """What the page shows of a run beside its `report.json`; a section without its part says why there is none.

    Attributes:
        name: of the run.
        config: the settings by dotted key.
        environment: what it ran on and with, by name.
        guards: contents of `guard.json`, by round.
        scores: of the evaluation sets, by round; of the first and the final guard at least.
        map: as `guardrail.report_map.embedding_map` returns it.
        texts: stored attacks, records with a `style`.
        stored: how many there are in all.
        signatures: rows of `guardrail.failure_signatures` by signature, measured on the final guard.
        against: `name` of another run, its `rows` (`guardrail.report_difference.compare`) and `settings` that differ.
    """

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    guards: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    scores: Mapping[int, Mapping[str, SetScores]] = field(default_factory=dict)
    map: Mapping[str, Any] | None = None
    texts: Sequence[Mapping[str, Any]] | None = None
    stored: int = 0
    signatures: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    against: Mapping[str, Any] | None = None


def render(report: dict[str, Any], material: Material) -> str:
    """Return the page for the contents of a `report.json` and what else there is of the run."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "share": _share,
        "number": _number,
        "interval": _interval,
        "bounds": _bounds,
        "change": _change,
    }
    template = environment.from_string(files("guardrail").joinpath("report.html.j2").read_text())
    first, final, rounds = report["rounds"][0], final_round(report), report["rounds"]
    attacked = [entry for entry in rounds if entry["attacks"]["attempts"]]
    return template.render(
        report=report,
        run=material,
        first=first,
        final=final,
        attacked=attacked,
        reasons=sorted({reason for entry in rounds for reason in entry["attacks"]["rejected"]}),
        phases=list(dict.fromkeys(name for entry in rounds for name in entry["phases"])),
        comparison=comparison(report["hardening"]),
        matrix=_matrix(report["hardening"]),
        confusion=_confusion,
        categories=_categories(first["evaluation"], final["evaluation"]),
        sets={name: _set_figures(name, material, first, final) for name in final["evaluation"]},
        success=Markup(figures.success_by_round(rounds)),
        cross_fitted=_cross_fitted(material.guards),
        recall=Markup(figures.recall_at_low_fpr(first["evaluation"], final["evaluation"])),
        diversity=_diversity(attacked),
        funnels=[(entry["round"], _funnel(entry)) for entry in rounds if entry.get("curation")],
        time=Markup(figures.seconds_by_phase(rounds)),
        points=_points(material.map) if material.map else [],
    )


def comparison(hardening: dict[str, Any]) -> list[tuple[str, float | None, float | None]]:
    """Return what is set side by side of the round-0 and the final guard: title, and a share in [0, 1] of each."""
    held_out = hardening["held_out_goals"]
    rows = (
        (f"success of the {hardening['stored_attacks']} stored attacks of all rounds", hardening, "success_rate"),
        (f"of these, the {held_out['stored_attacks']} on goals never trained on", held_out, "success_rate"),
        ("false positives, benign validation seeds", hardening, "benign_fpr"),
        ("false positives, benign held-out seeds", held_out, "benign_fpr"),
    )
    return [(title, of[f"{key}_round0_guard"], of[f"{key}_final_guard"]) for title, of, key in rows]


# --- parts of the page ----------------------------------------------------------------------------------------------


def _matrix(hardening: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """Return for each round's guard what each round's stored attacks do to it; empty where it was not recorded."""
    found = hardening.get("by_round")
    if found is None:
        return []
    return [
        [
            {"fooled": fooled, "stored": stored, "share": fooled / stored if stored else None}
            | {"interval": wilson(fooled, stored)}
            for fooled, stored in zip(row, found["stored_attacks"], strict=True)
        ]
        for row in found["successes"]
    ]


def _confusion(metrics: Mapping[str, Any]) -> dict[str, int]:
    """Return the counts behind the metrics of a set."""
    positives = metrics["positives"]
    negatives = metrics["n"] - positives
    hits, alarms = round((metrics["recall"] or 0) * positives), round((metrics["fpr"] or 0) * negatives)
    return {"hits": hits, "misses": positives - hits, "alarms": alarms, "passed": negatives - alarms}


def _cross_fitted(guards: Mapping[int, Mapping[str, Any]]) -> dict[int, float]:
    """Return by round the calibration error of the validation split's halves, where it was measured."""
    measured = {index: card["training"].get("validation", {}).get("cross_fitted") for index, card in guards.items()}
    return {index: found["ece"] for index, found in measured.items() if found}


def _categories(first: Mapping[str, Any], final: Mapping[str, Any]) -> dict[str, dict[str, tuple[Any, Any]]]:
    """Return by set and category the metrics of both guards, of sets with categories that were recorded."""
    return {
        name: {key: (first[name]["categories"].get(key), found) for key, found in metrics["categories"].items()}
        for name, metrics in final.items()
        if metrics.get("categories") and first.get(name, {}).get("categories") is not None
    }


def _set_figures(
    name: str, material: Material, first: Mapping[str, Any], final: Mapping[str, Any]
) -> list[Markup] | None:
    """Return ROC, precision-recall and reliability of a set of both labels; none of others; None without scores."""
    entries = {f"round {entry['round']}": entry for entry in (first, final)}
    own = {label: material.scores.get(entry["round"], {}).get(name) for label, entry in entries.items()}
    found = {label: each for label, each in own.items() if each is not None}
    if len(found) < len(entries):
        return None
    if any(each.unsafe.all() or not each.unsafe.any() for each in found.values()):
        return []
    labelled = {label: (each.unsafe, each.scores) for label, each in found.items()}
    metrics = {label: entry["evaluation"][name] for label, entry in entries.items()}
    precisions = {
        label: None if own["precision"] is None else (own["recall"], own["precision"]) for label, own in metrics.items()
    }
    drawn = [
        figures.roc(name, labelled, {label: (own["fpr"], own["recall"]) for label, own in metrics.items()}),
        figures.precision_recall(name, labelled, precisions),
    ]
    last = found[f"round {final['round']}"]
    drawn.append(figures.reliability_diagram(name, last.unsafe, last.before, last.scores))
    return [Markup(each) for each in drawn]


def _diversity(attacked: Sequence[Mapping[str, Any]]) -> list[tuple[str, Markup]]:
    """Return a chart by name of each measure that any round has."""
    drawn = []
    for key, name in (("self_bleu", "self-BLEU"), ("unique_clusters", "clusters"), ("mean_distance", "mean distance")):
        values = {entry["round"]: entry["attacks"]["diversity"][key] for entry in attacked}
        known = {index: value for index, value in values.items() if value is not None}
        if chart := figures.by_round(known, name, whole=key == "unique_clusters"):
            drawn.append((name, Markup(chart)))
    return drawn


def _funnel(entry: Mapping[str, Any]) -> Markup:
    return Markup(figures.funnel(entry["curation"], f"round {entry['round']}"))


_WIDTH, _HEIGHT, _MARGIN = 640, 460, 12  # of the map, in SVG units


def _points(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the map's points: place in the SVG, class, and what is said of each; attacks last, so on top."""
    points = found["points"]
    spans = []
    for key, size in (("x", _WIDTH), ("y", _HEIGHT)):
        low, high = min(p[key] for p in points), max(p[key] for p in points)
        spans.append((low, (size - 2 * _MARGIN) / max(high - low, 1e-9)))
    (left, across), (bottom, up) = spans
    return [
        {
            "x": round(_MARGIN + (p["x"] - left) * across, 1),
            "y": round(_HEIGHT - _MARGIN - (p["y"] - bottom) * up, 1),
            "kind": _kind(p),
            "says": _said_of(p),
        }
        for p in points
    ]


def _kind(point: Mapping[str, Any]) -> str:
    if point["kind"] != "attack":
        return str(point["kind"])
    return "success" if point["success"] else "caught"


def _said_of(point: Mapping[str, Any]) -> str:
    label = (", ".join(point["categories"] or ()) or "unsafe") if point["unsafe"] else "benign"
    if point["kind"] != "attack":
        return " · ".join(dict.fromkeys((point["kind"], point["method"], label)))
    came_of_it = "got past the guard" if point["success"] else "judged right"
    return f"attack of round {point['round']} · {label} · {point['style']} · {came_of_it}"


# --- numbers --------------------------------------------------------------------------------------------------------


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f}%"


def _bounds(bounds: Sequence[float]) -> str:
    return f"{bounds[0]:.3f}–{bounds[1]:.3f}"


def _change(value: float | None, digits: int) -> str:
    if value is None:
        return "–"
    return "0" if round(value, digits) == 0 else f"{value:+.{digits}f}".replace("-", "−")

"""The report of a run as one offline HTML page; texts of attacks are not in it."""

import io
from importlib.resources import files
from typing import Any

import jinja2


def render(report: dict[str, Any]) -> str:
    """Return the page for the contents of a `report.json`."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(files("guardrail").joinpath("report.html.j2").read_text())
    reasons = sorted({reason for entry in report["rounds"] for reason in entry["attacks"]["rejected"]})
    return template.render(
        report=report,
        reasons=reasons,
        sets=list(report["rounds"][0]["evaluation"]),
        comparison=comparison(report["hardening"]),
        figure=_figure(report["rounds"]),
        share=lambda value: "–" if value is None else f"{100 * value:.1f}%",
        number=lambda value: "–" if value is None else f"{value:.3f}",
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


def _figure(rounds: list[dict[str, Any]]) -> str:
    """Return an SVG of success rate (with its interval) and yield by round."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    attacked = [entry for entry in rounds if entry["attacks"]["success_rate"] is not None]
    index = [entry["round"] for entry in attacked]
    rate = [entry["attacks"]["success_rate"] for entry in attacked]
    low = [max(0.0, r - entry["attacks"]["interval"][0]) for r, entry in zip(rate, attacked, strict=True)]
    high = [max(0.0, entry["attacks"]["interval"][1] - r) for r, entry in zip(rate, attacked, strict=True)]
    axes.errorbar(index, rate, yerr=[low, high], marker="o", capsize=4, label="success rate over valid attempts (95%)")
    axes.plot(
        index, [entry["attacks"]["yield"] for entry in attacked], marker="s", ls="--", label="yield over all attempts"
    )
    axes.set(xlabel="round", ylabel="share", ylim=(0, 1), xticks=index)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]

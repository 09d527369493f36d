"""The report of a run: `report.json` and one offline HTML page, from what the run directory holds.

python jobs/report.py RUN_DIR
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from guardrail.metrics import share_text, wilson
from guardrail.report import comparison, render
from jobs.run import Manifest, round_directory, write_text

NO_DIVERSITY = {"self_bleu": None, "unique_clusters": 0, "mean_distance": None}


def round_entry(directory: Path, index: int) -> dict[str, Any]:
    """Return a round's entry of the report, once its `evaluate` phase has ended."""
    folder = round_directory(directory, index)
    phases = Manifest.read(directory).of_round(index)
    metrics = json.loads((folder / "metrics.json").read_text())
    attack = phases.get("attack", {})
    iterations = attack.get("iterations", [])
    syncs = [each["sync"] for each in iterations if each["sync"]]
    return {
        "round": index,
        "guard": metrics["guard"],
        "promoted": metrics["promoted"],
        "reason": metrics["reason"],
        "seconds": round(sum(phase["seconds"] for phase in phases.values()), 3),
        "transforms": attack.get("transforms"),
        "attacks": _attacks(folder / "attacks.parquet", attack.get("diversity", NO_DIVERSITY)),
        "sync": {
            "updates": len(syncs),
            "probe_max_abs_logprob_diff": max((s["probe_max_abs_logprob_diff"] for s in syncs), default=None),
            "weight_distance": syncs[-1]["weight_distance"] if syncs else None,
        },
        "iterations": iterations,
        "evaluation": metrics["evaluation"],
        "phases": {name: {"seconds": p["seconds"], "tokens": p["tokens"]} for name, p in _with_parts(phases).items()},
    }


def _with_parts(phases: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the phases, those of an attack's iterations listed after it."""
    listed: dict[str, dict[str, Any]] = {}
    for name, phase in phases.items():
        listed[name] = phase
        for part, seconds in phase.get("parts", {}).items():
            listed[f"{name}/{part}"] = {"seconds": seconds, "tokens": phase["tokens"] if part == "generate" else 0}
    return listed


def _attacks(path: Path, diversity: dict[str, Any]) -> dict[str, Any]:
    """Return what the report says of a round's attempts; a round without attacks has a path that does not exist."""
    table = pq.read_table(path, columns=["valid", "success", "rejected"]).to_pydict() if path.exists() else {}
    attempts, valid, successes = len(table.get("valid", [])), sum(table.get("valid", [])), sum(table.get("success", []))
    return {
        "attempts": attempts,
        "valid": valid,
        "successes": successes,
        "success_rate": successes / valid if valid else None,
        "interval": wilson(successes, valid),
        "yield": successes / attempts if attempts else None,
        "rejected": dict(sorted(Counter(reason for reason in table.get("rejected", []) if reason).items())),
        "diversity": diversity,
    }


def build_report(directory: Path) -> dict[str, Any]:
    """Return the contents of `report.json` for a run that has ended.

    Raises:
        ValueError: the directory holds no run, or one that has not ended.
    """
    manifest = Manifest.read(directory)
    harden = next((phase for key, phase in manifest.phases.items() if key.endswith("/harden")), None)
    if harden is None:
        raise ValueError(f"the run in {directory} has not ended; the command that began it goes on with it")
    count = sum(key.endswith("/evaluate") for key in manifest.phases)
    return {
        "run": manifest.facts(),
        "rounds": [round_entry(directory, index) for index in range(count)],
        "hardening": harden["hardening"],
    }


def write_report(directory: Path) -> dict[str, Any]:
    """Write `report.json` and `report.html` into a run directory, and return the former's contents."""
    report = build_report(directory)
    write_text(directory / "report.json", json.dumps(report, indent=2) + "\n")
    write_text(directory / "report.html", render(report))
    return report


def summary(report: dict[str, Any]) -> str:
    """Return what came of a run as Markdown: what it took, its rounds, and the round-0 guard beside the final one."""
    run = report["run"]
    minutes, seconds = divmod(round(run["seconds"]), 60)
    attempts = sum(entry["attacks"]["attempts"] for entry in report["rounds"])
    lines = [
        f"{minutes} min {seconds} s, peak memory {run['peak_rss_gib']:.1f} GiB, {attempts} attack attempts",
        "",
        "| round | attempts | valid | successes | largest probe difference | validation F1 | promoted |",
        "|---:|---:|---:|---:|---:|---:|---|",
    ]
    for entry in report["rounds"]:
        attacks, difference = entry["attacks"], entry["sync"]["probe_max_abs_logprob_diff"]
        cells = [entry["round"], attacks["attempts"], attacks["valid"], attacks["successes"]]
        cells += [
            "-" if difference is None else f"{difference:.1e}",
            share_text(entry["evaluation"]["validation"]["f1"]),
        ]
        lines.append(f"| {' | '.join(map(str, cells))} | {'yes' if entry['promoted'] else 'no'} |")
    lines += ["", "| | round-0 guard | final guard |", "|---|---:|---:|"]
    for title, first, final in comparison(report["hardening"]):
        lines.append(f"| {title} | {share_text(first)} | {share_text(final)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Write the report of the run that the command line names, and print a summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    directory = parser.parse_args(arguments).run_dir
    try:
        report = write_report(directory)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    print(summary(report), directory / "report.html", sep="\n\n")


if __name__ == "__main__":
    main(sys.argv[1:])

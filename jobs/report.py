"""The report of a run: `report.json` and one offline HTML page, from what the run directory holds.

python jobs/report.py RUN_DIR [--against OTHER_RUN_DIR] [--texts]
"""

import argparse
import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from actors.attempts import stored_attacks
from guardrail.files import write_text
from guardrail.metrics import share_text, wilson
from guardrail.records import Record
from guardrail.report import Material, comparison, render
from guardrail.report_difference import compare, differing, final_round
from guardrail.report_scores import read_scores
from guardrail.seeds import HELD_OUT, TRAIN, VALIDATION
from jobs.run import Manifest, round_directory
from jobs.settings import deciding
from jobs.terminal import orderly_end

NO_DIVERSITY = {"self_bleu": None, "unique_clusters": 0, "mean_distance": None}
MOST_TEXTS = 200  # of attacks in a page


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
        "curation": _json(folder / "curation" / "funnel.json"),
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
    columns, counted = ["valid", "success", "rejected"], pc.field("iteration").is_valid()
    table = pq.read_table(path, columns=columns, filters=counted).to_pydict() if path.exists() else {}
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
    harden = manifest.harden(directory)
    count = sum(key.endswith("/evaluate") for key in manifest.phases)
    ran_with = harden.get("environment", {}).get("versions")
    return {
        "run": {**manifest.facts(), **({"versions": ran_with} if ran_with else {})},
        "rounds": [round_entry(directory, index) for index in range(count)],
        "hardening": harden["hardening"],
    }


def write_report(directory: Path, *, against: Path | None = None, texts: bool = False) -> dict[str, Any]:
    """Write `report.json` and `report.html` into a run directory, and return the former's contents.

    Args:
        directory: of a run that has ended.
        against: that of another one; the page then shows the differences, too.
        texts: whether the page holds texts of attacks.

    Raises:
        ValueError: a directory holds no run, or one that has not ended.
    """
    report = build_report(directory)
    material = _material(directory, report, texts)
    if against is not None:
        other = build_report(against)
        ran_with = [_ran_with(each) for each in (directory, against)]
        known = ran_with[0].keys() & ran_with[1].keys()
        settings = differing(material.config, _config(against))
        settings += differing(*({name: each[name] for name in known} for each in ran_with))
        compared = {"name": _name(against), "rows": compare(report, other), "settings": settings}
        material = dataclasses.replace(material, against=compared)
    page = render(report, material)
    write_text(directory / "report.json", json.dumps(report, indent=2) + "\n")
    write_text(directory / "report.html", page)
    return report


def _material(directory: Path, report: dict[str, Any], texts: bool) -> Material:
    manifest = Manifest.read(directory)
    folders = {entry["round"]: round_directory(directory, entry["round"]) for entry in report["rounds"]}
    guards = {index: _json(folder / "guard" / "guard.json") for index, folder in folders.items()}
    tables = (pq.read_table(path) for folder in folders.values() if (path := folder / "attacks.parquet").exists())
    stored = stored_attacks(tables) if texts else []
    return Material(
        name=_name(directory),
        config=_config(directory),
        environment=_environment(directory, manifest),
        guards={index: guard for index, guard in guards.items() if guard},
        scores={index: read_scores(folders[index] / "scores.parquet") for index in (0, final_round(report)["round"])},
        map=_json(folders[max(folders)] / "map.json"),
        texts=_in_turn(stored)[:MOST_TEXTS] if texts else None,
        stored=len(stored),
        signatures=_signatures(directory, final_round(report)["guard"]),
    )


def _signatures(directory: Path, guard: str) -> dict[str, Any]:
    """Return the rows of jobs/failure_signatures.py by signature; none where it was not run on this guard."""
    found = _json(directory / "failure_signatures.json") or {}
    return found["signatures"] if found.get("guard") == guard else {}


def _environment(directory: Path, manifest: Manifest) -> dict[str, str]:
    """Return what was run with what, as far as it was kept, by what people call it."""
    config = _config(directory)
    told = manifest.harden(directory).get("environment", {})
    seeds = manifest.of_round(0).get("seed", {})
    splits = [f"{name} {seeds[name]}" for name in (TRAIN, VALIDATION, HELD_OUT) if name in seeds]
    facts = {
        "ended": told.get("ended"),
        "machine": told.get("machine"),
        "Python": told.get("python"),
        "code": told.get("code"),
        "seeds": config.get("seeds") or ("those of rayguard" if config else None),
        "seeds by split": ", ".join(splits),
        "evaluation sets": ", ".join(map(str, config.get("evaluation", []))),
        "synthesis model": config.get("synthesis.model"),
        "guard base": config.get("training.base"),
        "attacker": config.get("adversary.model"),
        "embedder": config.get("adversary.embedder"),
        "judges": ", ".join(map(str, config.get("adversary.judges", []))),
    }
    return {name: str(value) for name, value in facts.items() if value}


def _ran_with(directory: Path) -> dict[str, str]:
    """Return on what, and with which code and versions, a run ended, as far as it was kept."""
    told = Manifest.read(directory).harden(directory).get("environment", {})
    facts = {name: told[name] for name in ("machine", "python", "code") if name in told}
    return facts | {f"version of {name}": version for name, version in told.get("versions", {}).items()}


def _config(directory: Path) -> dict[str, Any]:
    """Return the settings that decide what a run finds, by dotted key; none where they were not kept."""
    path = directory / "config.yaml"
    return deciding(yaml.safe_load(path.read_text())) if path.exists() else {}


def _in_turn(attacks: Sequence[Record]) -> list[Record]:
    """Return attacks so that any first part has as many of each round as can be."""
    seen: Counter[int] = Counter()
    turns = []
    for place, attack in enumerate(attacks):
        turns.append((seen[attack["round"]], place))
        seen[attack["round"]] += 1
    return [attacks[place] for _, place in sorted(turns)]


def _name(directory: Path) -> str:
    return directory.resolve().name


def _json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


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
    parser.add_argument("--against", type=Path, metavar="RUN_DIR", help="another run, to show the difference")
    parser.add_argument(
        "--texts", action="store_true", help=f"write texts of attacks into the page, at most {MOST_TEXTS}, folded up"
    )
    given = parser.parse_args(arguments)
    with orderly_end():
        report = write_report(given.run_dir, against=given.against, texts=given.texts)
    print(summary(report), given.run_dir / "report.html", sep="\n\n")


if __name__ == "__main__":
    main(sys.argv[1:])

"""A finished run directory as the loop leaves it, of a few hundred records, written without a model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from actors.attempts import ATTEMPT_COLUMNS
from guardrail.evaluation import category_metrics
from guardrail.metrics import tagged_metrics
from guardrail.promotion import promote
from guardrail.records import make_record, to_table, write_records, write_table
from guardrail.remote import Moderation
from guardrail.report_map import embedding_map
from guardrail.report_scores import SCORES
from guardrail.taxonomy import CATEGORIES
from jobs.run import Manifest

ROUNDS = 3
NOT_PROMOTED = 2
TEMPERATURE = 2.0
SETS = {"validation": 160, "held_out": 120, "public": 300, "refusals": 40}  # the last has no unsafe item
_TOPICS = ("fraud", "cybercrime", "privacy", "violence")
_STYLES = ("paraphrase", "fiction", "academic", "role_play")


def write_run(directory: Path, *, seed: int = 0, attempts: int = 120, config: dict[str, Any] | None = None) -> Path:
    """Write a run of `ROUNDS` rounds whose attackers find less from round to round, and return its directory."""
    random = np.random.default_rng(seed)
    settings = {"seed": seed, "run_dir": "runs/x", "seeds": None, "evaluation": ["public"], "rounds": ROUNDS}
    models = {"training": {"base": "bundled:mini", "epochs": 3}, "adversary": {"model": "tiny", "groups": 13}}
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(yaml.safe_dump({**settings, **models, **(config or {})}))
    manifest = Manifest(config_digest=f"digest-{seed}", peak_rss_gib=3.5)
    seeds = [
        make_record(f"seed {i} of {_TOPICS[i % 4]}", unsafe=i % 2 == 0, source="s", categories=_of(i))
        for i in range(200)
    ]
    splits = {"train": seeds[:140], "validation": seeds[140:170], "held_out": seeds[170:]}
    for name, records in splits.items():
        write_records(records, directory / f"seeds/{name}.parquet")
    synthetic = [
        make_record(f"synthetic {i}", unsafe=s["unsafe"], source="s", categories=s["categories"], parent=s, method=m)
        for i, (s, m) in enumerate(zip(seeds[:140] * 2, ["paraphrase", "context", "everyday_text"] * 94, strict=False))
    ]
    write_records(synthetic, directory / "rounds/00/synthetic.parquet")
    manifest.phases["00/seed"] = {"seconds": 0.1, "tokens": 0, **{name: len(part) for name, part in splits.items()}}
    manifest.phases["00/synthesize"] = {"seconds": 210.0, "tokens": 40_000, "records": len(synthetic)}
    tables = []
    for index in range(ROUNDS + 1):
        folder = directory / f"rounds/{index:02d}"
        if index:
            tables.append(_attacks(random, seeds, index, attempts))
            write_table(tables[-1], folder / "attacks.parquet")
            manifest.phases[f"{index:02d}/attack"] = _attack_phase(tables[-1], index)
        _write_funnel(folder / "curation", 420 if index == 0 else 90)
        manifest.phases[f"{index:02d}/curate"] = {"seconds": 30.0, "tokens": 0}
        manifest.phases[f"{index:02d}/train"] = {"seconds": 60.0, "tokens": 30_000}
        _write_guard(folder / "guard", index)
        _write_metrics(random, folder, index)
        manifest.phases[f"{index:02d}/evaluate"] = {"seconds": 4.0, "tokens": 0}
    promote(directory / "guard", directory / f"rounds/{ROUNDS:02d}/guard")
    stored = [sum(table["success"].to_pylist()) for table in tables]
    last = f"{ROUNDS:02d}"
    manifest.phases[f"{last}/harden"] = {"seconds": 9.0, "tokens": 0, **_hardened(stored, seed)}
    map_of = {"seed": to_table(seeds), "synthetic": to_table(synthetic)}
    map_of["attack"] = pa.concat_tables(table.filter(table["valid"]) for table in tables)
    found = embedding_map(map_of, lambda texts: _embeddings(random, texts), seed=seed, limit=150)
    (directory / f"rounds/{last}/map.json").write_text(json.dumps(found))
    manifest.write(directory)
    return directory


def forget_what_older_versions_did_not_keep(directory: Path) -> None:
    """Make a run look as one of a version that kept no scores, map, funnel, intervals, matrix or environment."""
    for name in ("scores.parquet", "map.json", "curation/funnel.json"):
        for path in directory.glob(f"rounds/*/{name}"):
            path.unlink()
    for path in directory.glob("rounds/*/metrics.json"):
        metrics = json.loads(path.read_text())
        for of_set in metrics["evaluation"].values():
            of_set.pop("categories"), of_set.pop("intervals")
        path.write_text(json.dumps(metrics))
    manifest = Manifest.read(directory)
    harden = manifest.phases[f"{ROUNDS:02d}/harden"]
    harden.pop("environment"), harden["hardening"].pop("by_round")
    manifest.write(directory)


def _of(index: int) -> list[str]:
    return [_TOPICS[index % 4]] if index % 2 == 0 else []


def _attacks(random: np.random.Generator, seeds: list[dict[str, Any]], index: int, attempts: int) -> pa.Table:
    goals = [seeds[i] for i in random.integers(0, len(seeds), attempts)]
    records = [
        make_record(
            f"attack {index}.{i} <b>on</b> {g['text']}",
            unsafe=g["unsafe"],
            source="s",
            categories=g["categories"],
            parent=g,
            method="rl",
            round=index,
        )
        for i, g in enumerate(goals)
    ]
    valid = random.random(attempts) < 0.4
    success = valid & (random.random(attempts) < 0.5 / index)
    columns = {
        "style": [_STYLES[i % 4] for i in range(attempts)],
        "action": ["rewrite"] * attempts,
        "iteration": [1] * attempts,
        "valid": valid.tolist(),
        "success": success.tolist(),
        "rejected": [None if kept else ("refusal", "label flip", "unfinished")[i % 3] for i, kept in enumerate(valid)],
    }
    table = to_table(records)
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values, ATTEMPT_COLUMNS.field(name).type))
    return table


def _attack_phase(table: pa.Table, index: int) -> dict[str, Any]:
    successes = sum(table["success"].to_pylist())
    sync = {"probe_max_abs_logprob_diff": 3e-5, "weight_distance": 0.4 * index}
    return {
        "seconds": 160.0 + index,
        "tokens": 9_000,
        "parts": {"generate": 80.0, "score": 30.0, "update": 45.0, "sync": 5.0},
        "iterations": [{"sync": sync, "seconds": {}, "summary": {}}],
        "transforms": {"tried": 84, "misjudged": 17},
        "diversity": {
            "self_bleu": 0.1 * index,
            "unique_clusters": successes // 2,
            "mean_distance": 0.8 - 0.1 * index,
        },
    }


def _write_funnel(folder: Path, records: int) -> None:
    folder.mkdir(parents=True)
    stages = [{"stage": "intake", "in": records + 1, "kept": records, "reasons": {"empty text": 1}}]
    drops = [("exact", 0.05), ("near", 0.2), ("decontamination", 0.04), ("quality", 0.1), ("noise", 0.02)]
    for stage, share in drops:
        dropped = round(records * share)
        stages.append({"stage": stage, "in": records, "kept": records - dropped, "reasons": {f"{stage} it": dropped}})
        records -= dropped
    (folder / "funnel.json").write_text(json.dumps(stages))


def _write_guard(folder: Path, index: int) -> None:
    folder.mkdir(parents=True)
    training = {"base": "bundled:mini", "start": None if index == 0 else "guard-0", "records": 330 + 40 * index}
    counts = {"unsafe": 160 + 20 * index, "tokens": 30_000, "data": {"seed/safe": 70, "paraphrase/unsafe": 90}}
    counts["validation"] = {"cross_fitted": {"ece": 0.041} if index else None}  # a half of round 0's lacks a label
    card = {"version": f"round-{index:02d}", "digest": f"guard-{index}", "temperature": TEMPERATURE}
    card |= {"thresholds": {"unsafe": 0.5}, "window": 256, "training": training | counts}
    (folder / "guard.json").write_text(json.dumps(card))


def _write_metrics(random: np.random.Generator, folder: Path, index: int) -> None:
    evaluation, tables = {}, []
    for name, count in SETS.items():
        unsafe = np.arange(count) % 2 == 0 if name != "refusals" else np.zeros(count, dtype=bool)
        logits = np.where(unsafe, 0.9, -1.1) * (1 + 0.15 * index) + random.normal(0, 1.1, count)
        probabilities = np.full((count, 1 + len(CATEGORIES)), 0.05)
        probabilities[:, 0] = 1 / (1 + np.exp(-logits))
        categories = [_of(i) if own else [] for i, own in enumerate(unsafe)]
        for row, own in enumerate(categories):
            for key in own:
                probabilities[row, 1 + CATEGORIES.index(key)] = random.random()
        said = Moderation(probabilities, probabilities[:, 0] >= 0.5)
        metrics = tagged_metrics(unsafe, probabilities[:, 0], [["t"]] * count, 0.5, said.flagged, seed=0)
        metrics["categories"] = category_metrics(categories, said, {"unsafe": 0.5})
        evaluation[name] = metrics
        ids = [f"{name}-{i}" for i in range(count)]
        columns = {"set": [name] * count, "id": ids, "unsafe": unsafe, "logit": logits * TEMPERATURE}
        columns |= {"score": probabilities[:, 0]}
        tables.append(pa.table(columns, schema=SCORES))
    write_table(pa.concat_tables(tables), folder / "scores.parquet")
    promoted = index != NOT_PROMOTED
    reason = "first guard" if index == 0 else f"attack success 0.900 to 0.{3 if promoted else 9}00"
    metrics = {"guard": f"guard-{index}", "evaluation": evaluation, "promoted": promoted, "reason": reason}
    (folder / "metrics.json").write_text(json.dumps(metrics))


def _hardened(stored: list[int], seed: int) -> dict[str, Any]:
    successes = [
        [round(n * (0.97 if guard <= j else 0.2)) for j, n in enumerate(stored)] for guard in range(ROUNDS + 1)
    ]
    rates = [sum(row) / sum(stored) for row in successes]
    compared = {
        "stored_attacks": sum(stored),
        "success_rate_round0_guard": rates[0],
        "success_rate_final_guard": rates[-1],
        "benign_fpr_round0_guard": 0.05,
        "benign_fpr_final_guard": 0.0375,
    }
    held_out = {**compared, "stored_attacks": sum(stored) // 6}
    by_round = {"stored_attacks": stored, "successes": successes}
    environment = {
        "code": f"code-{seed}",
        "ended": "2026-01-02T03:04:05+00:00",
        "machine": "Linux x86_64, 2 CPUs",
        "python": "3.11.7",
        "versions": {"rayguard": "0.1.0", "ray": "2.60.0"},
    }
    hardening = {**compared, "held_out_goals": held_out, "by_round": by_round}
    return {"hardening": hardening, "environment": environment}


def _embeddings(random: np.random.Generator, texts: list[str]) -> np.ndarray:
    vectors = random.normal(0, 0.35, (len(texts), 12))
    for row, text in enumerate(texts):
        vectors[row, sum(text.encode()) % 4] += 1
        vectors[row, 5] += "attack" in text
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

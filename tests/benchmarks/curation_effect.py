"""What curation finds of faults that were planted, and what a guard regains by it.

python -m tests.benchmarks.curation_effect --data-dir DIR [--records 11000] [--seed 0] [--guards 2 [--by-stage]]

The method's second experiment. Public training data is drawn and curated once, so that its own faults are gone; what is
left is the clean set. Into that are planted: exact copies (10%, with other case and spacing), near copies (10%, a word
cut, left out or doubled, or one more), evaluation texts written by transforms (2%), gibberish (5%: random letters,
keyboard mash, shuffled letters, shuffled words), flipped labels (10%). The result is curated. A pair of copies is found
if one of the two is dropped as the other's; precision counts what a stage drops that is none of its faults. Shuffled
words are gibberish and a copy: dropped as either, they are found. Guards (`--guards` random seeds) are trained on the
clean set, on what of it was not flipped (the most that can be had by dropping), on the faulty set and on the curated
one, and measured on requests held back from the clean set; also, for the record, on the evaluation sets but for the
texts that were planted. They read each id once: exact copies cost nothing. With `--by-stage` guards are also trained on
the curated set and what one stage dropped, for each stage that dropped any: what F1 loses is what the stage adds.
"""

import argparse
import json
import string
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cluster.connect import connect
from guardrail.curation import CurationConfig, curate
from guardrail.evaluation_items import EvaluationItem
from guardrail.evaluation_sets import evaluation_texts, load_evaluations
from guardrail.guard import Guard
from guardrail.metrics import binary_metrics
from guardrail.models import cache_dir
from guardrail.records import Record, make_record, read_records, write_records
from guardrail.taxonomy import UNSAFE
from guardrail.text import digest
from guardrail.transforms import TRANSFORMS
from tests.benchmarks.common import BOTH_LABELS, EVALUATION, labelled_requests, train

UNSAFE_SETS = ("aart", "harmfulqa", "catqa", "do-not-answer", "safety-tuned-llamas", "toxigen")
BENIGN_SETS = ("alpaca", "dolly", "self-instruct-seed-tasks", "toxigen")
SHARES = {"exact": 0.10, "near": 0.10, "contaminated": 0.02, "gibberish": 0.05, "label_flip": 0.10}
#: The stages whose business a fault is.
STAGES = {
    "exact": ("exact",),
    "near": ("near", "semantic"),
    "contaminated": ("decontamination",),
    "gibberish": ("quality",),
    "label_flip": ("noise",),
}
_LONGEST = 60  # words
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def public_records(data_dir: Path, count: int, random: np.random.Generator) -> list[Record]:
    """Return public training requests, half of them unsafe, the sets of a label in equal parts as far as they reach.

    What has more than `_LONGEST` words is a document with a request, and most of the time of training.
    """
    drawn: list[Record] = []
    for label, names in ((True, UNSAFE_SETS), (False, BENIGN_SETS)):
        pools = []
        for name in names:
            found = [
                record
                for record in labelled_requests(name, data_dir, unsafe=label)
                if len(record["text"].split()) <= _LONGEST
            ]
            pools.append([found[i] for i in random.permutation(len(found))])
        wanted = count // 2
        while wanted > 0 and any(pools):
            for pool in pools:
                if pool and wanted:
                    drawn.append(pool.pop())
                    wanted -= 1
    return list({record["id"]: record for record in drawn}.values())


# --- the faults -------------------------------------------------------------------------------------------------------


def exact_copy(text: str, random: np.random.Generator) -> str:
    """Return the text in other case and spacing."""
    return str(random.choice([text.upper(), text.lower(), f"  {text} ", text.replace(" ", "  ")]))


def near_copy(text: str, random: np.random.Generator) -> str:
    """Return the text with one small change in its words."""
    words = text.split()
    at = int(random.integers(len(words)))
    match int(random.integers(4)):
        case 0:
            words[at] = words[at][::-1] if len(words[at]) < 4 else words[at][:-1]
        case 1 if len(words) > 8:
            del words[at]
        case 2:
            words.insert(at, words[at])
        case _:
            words.append("please")
    return " ".join(words)


def gibberish(text: str, random: np.random.Generator) -> str:
    """Return what has the length of the text and says nothing."""

    def letters(alphabet: str) -> str:
        return " ".join("".join(random.choice(list(alphabet), size=max(2, len(word)))) for word in text.split())

    match int(random.integers(4)):
        case 0:
            return letters(string.ascii_lowercase)
        case 1:
            return letters(_ROWS[int(random.integers(len(_ROWS)))])
        case 2:
            return " ".join("".join(random.permutation(list(word))) for word in text.split())
        case _:
            return " ".join(random.permutation(text.split()))


def planted(
    clean: Sequence[Record], evaluation: Sequence[tuple[str, EvaluationItem]], random: np.random.Generator
) -> tuple[list[Record], dict[str, dict[str, str]]]:
    """Return clean records with faults among them, and the faults: by kind, id of each to id of what it was made from.

    An exact copy has the id of its original, and a flipped label changes no id. Near copies and gibberish are made from
    texts of at least eight words: of fewer, a change of one makes another text, and a shuffle may say something.
    """
    counts = {kind: round(share * len(clean)) for kind, share in SHARES.items()}
    order = [clean[i] for i in random.permutation(len(clean))]
    long = [record for record in order if 8 <= len(record["text"].split()) <= 40]
    flipped = order[: counts["label_flip"]]
    sound = {record["id"] for record in clean} - {record["id"] for record in flipped}
    result = [
        {**record, "unsafe": not record["unsafe"], "categories": None} if record["id"] not in sound else record
        for record in clean
    ]
    faults: dict[str, dict[str, str]] = {kind: {} for kind in SHARES}
    faults["label_flip"] = {record["id"]: record["id"] for record in flipped}
    makers: dict[str, Callable[[str, np.random.Generator], str]] = {
        "exact": exact_copy,
        "near": near_copy,
        "gibberish": gibberish,
    }
    for kind, make in makers.items():
        pool = [record for record in (order if kind == "exact" else long) if record["id"] in sound]
        for place in random.permutation(len(pool)):
            if len(faults[kind]) == counts[kind]:
                break
            of = pool[place]
            copy = {**_record(make(of["text"], random), of["unsafe"], of["source"]), "categories": of["categories"]}
            if (copy["id"] == of["id"]) is (kind == "exact") and copy["id"] not in faults[kind]:
                faults[kind][copy["id"]] = of["id"]
                result.append(copy)
    names = list(TRANSFORMS)
    for place in random.permutation(len(evaluation))[: counts["contaminated"]]:
        name, item = evaluation[place]
        written = TRANSFORMS[names[int(random.integers(len(names)))]].apply(item.text, random)
        copy = _record(written, item.unsafe, "web")
        faults["contaminated"][copy["id"]] = f"{name}/{item.id}"
        result.append(copy)
    return result, faults


def _record(text: str, unsafe: bool, source: str) -> Record:
    return make_record(text, unsafe=unsafe, source=source, categories=None if unsafe else [])


# --- what is found ----------------------------------------------------------------------------------------------------


def found(ledger: Sequence[dict[str, Any]], faults: dict[str, dict[str, str]]) -> dict[str, dict[str, Any]]:
    """Return recall and precision for each kind of fault, and what each of its stages dropped.

    Args:
        ledger: rows of id, stage, reason, evidence.
        faults: as `planted` returned them.
    """
    by_stage: dict[str, list[dict[str, Any]]] = {}
    for row in ledger:
        by_stage.setdefault(row["stage"], []).append(row)
    gone, near = {row["id"] for row in ledger}, faults["near"]
    # Two copies of one text are each other's, too.
    origin = {**near, **{original: original for original in near.values()}}
    result: dict[str, dict[str, Any]] = {}
    for kind, of_kind in faults.items():
        dropped = [row for stage in STAGES[kind] for row in by_stage.get(stage, [])]
        ids = {row["id"] for row in dropped}
        if kind == "near":
            right = [row for row in dropped if row["id"] in origin or row["id"] in faults["gibberish"]]
            caught = [copy for copy, original in near.items() if {copy, original} & ids]
        else:
            right = [row for row in dropped if row["id"] in of_kind]
            caught = [each for each in of_kind if each in (gone if kind == "gibberish" else ids)]
        result[kind] = {
            "planted": len(of_kind),
            "dropped": len(dropped),
            "recall": round(len(caught) / max(1, len(of_kind)), 4),
            "precision": round(len(right) / len(dropped), 4) if dropped else None,
        }
    return result


def flips_by_source(
    ledger: Sequence[dict[str, Any]], faults: dict[str, dict[str, str]], records: Sequence[Record]
) -> dict[str, dict[str, int]]:
    """Return, for each source, how many labels are flipped, how many of these were dropped for it, and how many others.

    Args:
        ledger: rows of id, stage, reason, evidence.
        faults: as `planted` returned them.
        records: that were curated.
    """
    dropped = {row["id"] for row in ledger if row["stage"] in STAGES["label_flip"]}
    result: dict[str, dict[str, int]] = {}
    for each, source in {record["id"]: record["source"].partition(":")[0] for record in records}.items():
        of_source = result.setdefault(source, {"records": 0, "flipped": 0, "found": 0, "others": 0})
        is_flipped = each in faults["label_flip"]
        of_source["records"] += 1
        of_source["flipped"] += is_flipped
        of_source["found"] += is_flipped and each in dropped
        of_source["others"] += not is_flipped and each in dropped
    return dict(sorted(result.items()))


def without_a_stage(
    kept: Sequence[Record], ledger: Sequence[dict[str, Any]], records: Sequence[Record]
) -> dict[str, list[Record]]:
    """Return, for each stage that dropped any, what is kept with the records that it dropped."""
    by_label = {(record["id"], record["unsafe"]): record for record in records}
    result: dict[str, list[Record]] = {}
    for row in ledger:
        name = f"without {row['stage']}"
        result.setdefault(name, list(kept)).append(by_label[row["id"], row["unsafe"]])
    return result


def f1(guard: Guard, items: Sequence[tuple[str, bool]]) -> float:
    """Return a guard's F1 at its own threshold on (text, unsafe)."""
    texts, unsafe = zip(*items, strict=True)
    scores = guard.probabilities(texts)[:, 0]
    return float(binary_metrics(unsafe, scores, guard.card.thresholds[UNSAFE])["f1"])


def main(arguments: Sequence[str]) -> None:
    """Plant, curate, train, and print the table and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="local copies of the public sets")
    parser.add_argument("--records", type=int, default=11_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guards", type=int, default=2, help="guards that are trained on each set")
    parser.add_argument("--by-stage", action="store_true", help="also train guards without each stage")
    parser.add_argument("--dir", type=Path, default=cache_dir() / "benchmarks" / "curation_effect")
    options = parser.parse_args(arguments)
    random = np.random.default_rng(options.seed)
    directory = options.dir / f"seed-{options.seed}-{options.records}"
    directory.mkdir(parents=True, exist_ok=True)
    sets = load_evaluations(list(EVALUATION), options.data_dir)
    config = CurationConfig(gibberish_model="bundled:smollm2-135m-instruct")
    with connect():

        def curated(records: Sequence[Record], name: str, config: CurationConfig) -> list[Record]:
            write_records(records, directory / f"{name}.parquet")
            curate([directory / f"{name}.parquet"], directory / name, config, evaluation_texts(sets))
            return read_records(directory / name / "kept.parquet")

        # How alike texts are hangs on the records beside them: what is nearly alike now may be a copy later.
        wider = config.model_copy(update={"semantic_duplicate": config.semantic_duplicate - 0.05})
        base = curated(public_records(options.data_dir, options.records, random), "public", wider)
        places = random.permutation(len(base))
        validation, held_back, clean = (
            [base[i] for i in part] for part in np.split(places, [len(base) // 6, len(base) // 2])
        )
        items = [(name, item) for name, listed in sets.items() for item in listed if len(item.text.split()) >= 5]
        faulty, faults = planted(clean, items, random)
        kept = curated(faulty, "curated", config)
        ledger = pq.read_table(directory / "curated" / "ledger.parquet").to_pylist()
        table = found(ledger, faults)
        print(f"{len(clean)} clean records, {len(faulty)} with faults, {len(kept)} kept")
        print(f"{'fault':14} {'stages':18} {'planted':>8} {'dropped':>8} {'recall':>7} {'precision':>10}")
        for kind, row in table.items():
            precision = "-" if row["precision"] is None else f"{row['precision']:.3f}"
            stages = ", ".join(STAGES[kind])
            print(f"{kind:14} {stages:18} {row['planted']:8d} {row['dropped']:8d} {row['recall']:7.3f} {precision:>10}")
        result: dict[str, Any] = {"stages": table, "clean": len(clean), "faulty": len(faulty), "kept": len(kept)}
        by_source = flips_by_source(ledger, faults, faulty)
        print(f"{'source':28} {'records':>8} {'flipped':>8} {'found':>6} {'others dropped':>15}")
        for source, counts in by_source.items():
            print(
                f"{source:28} {counts['records']:8d} {counts['flipped']:8d} {counts['found']:6d} {counts['others']:15d}"
            )
        result["flips_by_source"] = by_source
        planted_ids = {each for of_kind in faults.values() for each in of_kind} | set(faults["near"].values())
        print(f"{'stage':16} {'in':>6} {'dropped':>8} {'planted':>8}")
        for entry in json.loads((directory / "curated" / "funnel.json").read_text()):
            hit = sum(row["stage"] == entry["stage"] and row["id"] in planted_ids for row in ledger)
            print(f"{entry['stage']:16} {entry['in']:6d} {entry['in'] - entry['kept']:8d} {hit:8d}  {entry['reasons']}")
        if options.guards:
            leaked = set(faults["contaminated"].values())
            measured = {"held back": [(record["text"], record["unsafe"]) for record in held_back]} | {
                name: [(item.text, item.unsafe) for item in sets[name] if f"{name}/{item.id}" not in leaked]
                for name in BOTH_LABELS
            }
            found_f1: dict[str, dict[str, float]] = {}
            unflipped = [record for record in clean if record["id"] not in faults["label_flip"]]
            data_sets = {"clean": clean, "unflipped": unflipped, "faulty": faulty, "curated": kept}
            if options.by_stage:
                data_sets |= without_a_stage(kept, ledger, faulty)
            for name, records in data_sets.items():
                data = digest(*(f"{record['id']} {record['unsafe']}" for record in records))  # other data, other guards
                trained = [
                    Guard.from_pretrained(train(records, validation, directory / f"guard-{data}-{seed}", seed=seed))
                    for seed in range(options.guards)
                ]
                found_f1[name] = {
                    each: float(np.mean([f1(guard, texts) for guard in trained])) for each, texts in measured.items()
                }
                print(f"F1, {name}: {', '.join(f'{each} {value:.3f}' for each, value in found_f1[name].items())}")
            of_clean, of_faulty, of_curated = (found_f1[name]["held back"] for name in ("clean", "faulty", "curated"))
            regained = (of_curated - of_faulty) / (of_clean - of_faulty) if of_clean != of_faulty else None
            result |= {"f1": found_f1, "f1_regained": regained}
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])

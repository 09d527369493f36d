"""The loop from its seeds to its report, and what the run directory holds then."""

import json
import re

import pyarrow.parquet as pq
import pytest

from guardrail.evaluation import success_rate
from guardrail.guard import Guard
from guardrail.guard_card import GuardCard
from guardrail.records import SCHEMA, read_records
from jobs import adversarial_loop
from tests import tiny_loop

PHASES = {
    "00": ["seed", "synthesize", "curate", "train", "evaluate"],
    "01": ["attack", "curate", "train", "evaluate", "harden"],
}


@pytest.fixture(scope="module")
def report(finished_loop):
    return json.loads((finished_loop / "report.json").read_text())


def test_the_report_says_what_happened(report, finished_loop):
    assert set(report) == {"run", "rounds", "hardening"}
    assert set(report["run"]) == {"seconds", "peak_rss_gib", "config_digest", "versions"}
    assert report["run"]["peak_rss_gib"] > 0.5 and {"rayguard", "ray", "torch"} <= set(report["run"]["versions"])
    first, last = report["rounds"]
    assert first["attacks"]["attempts"] == 0 and first["promoted"]
    attacks = last["attacks"]
    assert attacks["attempts"] == 32
    table = pq.read_table(finished_loop / "rounds/01/attacks.parquet").to_pydict()
    assert (attacks["valid"], attacks["successes"]) == (sum(table["valid"]), sum(table["success"]))
    assert attacks["valid"] + sum(attacks["rejected"].values()) == 32
    low, high = attacks["interval"]
    assert 0 <= low <= attacks["success_rate"] <= high <= 1 and attacks["yield"] == attacks["successes"] / 32
    assert set(attacks["diversity"]) == {"self_bleu", "unique_clusters", "mean_distance"}
    assert last["sync"]["updates"] == 2 and last["sync"]["weight_distance"] > 0
    assert last["sync"]["probe_max_abs_logprob_diff"] < 1e-3
    for entry in report["rounds"]:
        assert [name for name in entry["phases"] if "/" not in name] == PHASES[f"{entry['round']:02d}"]
        assert {"f1", "fpr", "auprc"} <= set(entry["evaluation"]["validation"])
    hardening = report["hardening"]
    assert hardening["stored_attacks"] == attacks["successes"]
    for guard in ("round0", "final"):
        assert 0 <= hardening[f"success_rate_{guard}_guard"] <= 1 and 0 <= hardening[f"benign_fpr_{guard}_guard"] <= 1
    assert hardening["success_rate_round0_guard"] == 1  # every attack of round 1 got past it


def test_the_run_directory_is_whole(report, finished_loop):
    for index in ("00", "01"):
        folder = finished_loop / "rounds" / index
        kept, curated = read_records(folder / "curation/kept.parquet"), read_records(folder / "curated.parquet")
        assert {record["id"] for record in curated} <= {record["id"] for record in kept}
        assert {"stage", "reason"} <= set(pq.read_schema(folder / "ledger.parquet").names)
        assert GuardCard.read(folder / "guard").digest == report["rounds"][int(index)]["guard"]
    attacks = pq.read_schema(finished_loop / "rounds/01/attacks.parquet")
    assert set(SCHEMA.names) < set(attacks.names)
    in_use = [entry["guard"] for entry in report["rounds"] if entry["promoted"]][-1]
    guard = Guard.from_pretrained(finished_loop / "guard")
    assert guard.card.digest == in_use and len(guard.classify(["How do I bake bread?"])) == 1
    assert not list(finished_loop.glob("rounds/*/.guard*"))  # nothing half-done stays behind


def test_what_must_not_be_trained_on_is_not(finished_loop):
    held_out = {
        r["id"] for name in ("validation", "held_out") for r in read_records(finished_loop / f"seeds/{name}.parquet")
    }
    for index in ("00", "01"):
        trained = read_records(finished_loop / f"rounds/{index}/training.parquet")
        assert trained and not any({r["id"], r["seed_id"]} & held_out for r in trained)


def test_attacks_that_kept_their_label_train_the_first_guard_further_successful_or_not(finished_loop):
    attempts = pq.read_table(finished_loop / "rounds/01/attacks.parquet").to_pylist()
    held_out = {record["id"] for record in read_records(finished_loop / "seeds/held_out.parquet")}
    kept = {row["id"] for row in attempts if row["valid"] and row["seed_id"] not in held_out}
    failed = {row["id"] for row in attempts if row["valid"] and not row["success"]}
    assert kept & failed
    trained = {r["id"] for r in read_records(finished_loop / "rounds/01/training.parquet")}
    dropped = set(pq.read_table(finished_loop / "rounds/01/ledger.parquet")["id"].to_pylist())
    assert kept <= trained | dropped and not (trained & {row["id"] for row in attempts if not row["valid"]} - kept)
    first, second = (GuardCard.read(finished_loop / f"rounds/{index}/guard") for index in ("00", "01"))
    assert (first.training["start"], second.training["start"]) == (None, first.digest)


def test_what_transforms_get_past_the_guard_is_trained_on(finished_loop):
    facts = json.loads((finished_loop / "manifest.json").read_text())["phases"]["01/attack"]["transforms"]
    found = read_records(finished_loop / "rounds/01/transformed.parquet")
    assert 20 < facts["tried"] <= 40 and facts["misjudged"] == len(found) > 0
    first = Guard.from_pretrained(finished_loop / "rounds/00/guard")
    assert success_rate(first, found) == 1 and {record["round"] for record in found} == {1}
    trained = {r["id"] for r in read_records(finished_loop / "rounds/01/training.parquet")}
    dropped = set(pq.read_table(finished_loop / "rounds/01/ledger.parquet")["id"].to_pylist())
    assert {record["id"] for record in found} <= trained | dropped


def test_the_page_needs_no_network(finished_loop):
    page = (finished_loop / "report.html").read_text()
    assert "<svg" in page or "data:image" in page
    assert not re.findall(r"""(?:src|href)=["']https?:""", page)


def test_the_same_command_again_does_nothing_again(finished_loop, loop_inputs, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished_loop.rglob("*.parquet")}
    adversarial_loop.main(tiny_loop.settings(finished_loop, loop_inputs))
    assert capsys.readouterr().out.count("done before") == sum(map(len, PHASES.values()))
    assert {path: path.stat().st_mtime_ns for path in finished_loop.rglob("*.parquet")} == before


def test_other_settings_do_not_mix_with_a_run(finished_loop, loop_inputs, capsys):
    with pytest.raises(SystemExit) as stopped:
        adversarial_loop.main([*tiny_loop.settings(finished_loop, loop_inputs), "--seed", "5"])
    assert stopped.value.code == 1 and "begun with another seed" in capsys.readouterr().err

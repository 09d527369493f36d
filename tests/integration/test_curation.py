"""Curation over Ray: what is written, that order and files do not matter, and that a killed run goes on."""

import json
import random

import pyarrow.parquet as pq
import pytest

from guardrail.curation import CurationConfig, curate
from guardrail.curation.duplicates import NearDuplicates
from guardrail.records import make_record, read_records, write_records
from guardrail.seeds import embedded_seeds
from guardrail.text import words

pytestmark = pytest.mark.usefixtures("ray_cluster")

CONFIG = CurationConfig()
STAGES = """
canonical exact near decontamination language quality semantic label fidelity judges noise policy balance
""".split()
JUDGING = set(STAGES) - {"language", "judges", "noise", "policy"}  # by the settings and records of these tests


def request(number):
    return " ".join(random.Random(f"{number}").choices(WORDS, k=12))


WORDS = sorted(
    {word for seed in embedded_seeds() if not seed["unsafe"] for word in words(seed["text"]) if len(word) > 4}
)[::5]


@pytest.fixture
def records():
    """Thirty seeds, thirty good children, and one record for each reason to drop one."""
    seeds = [
        make_record(request(i), unsafe=bool(i % 2), source="mine", categories=["fraud"] if i % 2 else [])
        for i in range(30)
    ]

    def child(parent, text, **fields):
        fields = {"unsafe": parent["unsafe"], "categories": parent["categories"], "method": "swap", **fields}
        return make_record(text, source="mine", parent=parent, **fields)

    good = [child(parent, request(100 + i)) for i, parent in enumerate(seeds)]
    bad = {
        "canonical": child(seeds[0], "\u200b"),
        "exact": child(seeds[1], seeds[1]["text"].upper()),
        "near": child(seeds[2], seeds[2]["text"] + " ta"),
        "semantic": child(seeds[9], " ".join(sorted(words(seeds[9]["text"])))),
        "quality": child(seeds[3], "I'm sorry, but I can't help with that."),
        "label": child(seeds[4], request(200), unsafe=True, categories=["fraud"]),
        "fidelity": child(seeds[7], "The stock market fell on Monday.", method="paraphrase"),
        "decontamination": child(seeds[5], request(300)),
    }
    surplus = [child(seeds[6], request(400 + i), method="rl") for i in range(70)]
    rolled = [child(seeds[8], request(500 + i), method="roll") for i in range(10)]
    return seeds, good, bad, surplus + rolled


def write(tmp_path, records, parts=1, name="in"):
    paths = [tmp_path / f"{name}-{part}.parquet" for part in range(parts)]
    for part, path in enumerate(paths):
        write_records(records[part::parts], path)
    return paths


def all_of(records):
    seeds, good, bad, more = records
    return [*seeds, *good, *bad.values(), *more]


EVALUATION = {"held": [("e1", request(300)), ("e2", request(9000))]}


def test_each_stage_drops_what_it_is_for(tmp_path, records):
    seeds, good, bad, _ = records
    out = tmp_path / "out"
    listed = [*all_of(records), {**seeds[0], "text": " "}]
    report = curate(write(tmp_path, listed), out, CONFIG, EVALUATION, num_cpus=0.5)

    assert [entry["stage"] for entry in report.funnel] == ["intake", *STAGES]
    assert list(report.dropped) == STAGES
    assert report.funnel[0] == {
        "stage": "intake",
        "in": len(listed),
        "kept": len(listed) - 1,
        "reasons": {"empty text": 1},
    }
    assert len(listed) - 1 == report.kept + sum(report.dropped.values())
    assert all(before["kept"] == after["in"] for before, after in zip(report.funnel, report.funnel[1:], strict=False))
    assert json.loads((out / "funnel.json").read_text()) == report.funnel
    assert not (out / "stages").exists()

    ledger = pq.read_table(out / "ledger.parquet").to_pylist()
    assert {row["stage"] for row in ledger} == JUDGING
    for stage, record in bad.items():
        (row,) = [row for row in ledger if row["stage"] == stage]
        assert (row["id"], row["parent_id"], row["seed_id"]) == (record["id"], record["parent_id"], record["seed_id"])
    by_stage = {row["stage"]: row for row in ledger}
    assert by_stage["near"]["evidence"].startswith(f"{seeds[2]['id']}: ")
    assert by_stage["semantic"]["evidence"].startswith(f"{seeds[9]['id']}: 1.00")
    assert by_stage["decontamination"]["evidence"] == "held/e1"
    assert report.dropped["balance"] == 10  # 70 over a limit of 4 times the median of 70, 15 and 10

    kept = read_records(out / "kept.parquet")
    assert (len(kept), report.unchecked) == (report.kept, 0)
    texts = {record["text"] for record in kept}
    assert {record["text"] for record in [*seeds, *good]} <= texts


def test_neither_order_nor_files_matter(tmp_path, records, monkeypatch):
    listed = all_of(records)
    curate(write(tmp_path, listed), tmp_path / "one", CONFIG, EVALUATION)
    random.Random(0).shuffle(listed)
    monkeypatch.setattr("guardrail.curation.pipeline._MOST_ROWS", 40)
    curate(write(tmp_path, listed, parts=2, name="shuffled"), tmp_path / "two", CONFIG, EVALUATION, num_cpus=1)
    for name in ("kept.parquet", "ledger.parquet"):
        assert pq.read_table(tmp_path / "one" / name).equals(pq.read_table(tmp_path / "two" / name))
    assert (tmp_path / "one" / "funnel.json").read_text() == (tmp_path / "two" / "funnel.json").read_text()


def test_a_killed_run_goes_on_where_it_was(tmp_path, records, monkeypatch):
    paths, out = write(tmp_path, all_of(records)), tmp_path / "out"
    real = NearDuplicates.prepare

    def killed(self, survey):
        real(self, survey)
        raise KeyboardInterrupt

    monkeypatch.setattr(NearDuplicates, "prepare", killed)
    with pytest.raises(KeyboardInterrupt):
        curate(paths, out, CONFIG, EVALUATION)
    assert not (out / "kept.parquet").exists()
    (out / ".kept.parquet.4194304").touch()  # as of a process that was killed while it wrote
    written = {file: file.stat().st_mtime_ns for file in out.glob("stages/*/*") if "03-near" not in file.parts}
    assert {file.parent.name for file in written} == {"00-input", "00-facts", "01-canonical", "02-exact"}

    def checked(self, survey):
        assert not any((out / "stages" / "03-near" / "scratch").iterdir())
        assert {file: file.stat().st_mtime_ns for file in written} == written  # nothing was done twice
        return real(self, survey)

    monkeypatch.setattr(NearDuplicates, "prepare", checked)
    told = []
    report = curate(paths, out, CONFIG, EVALUATION, tell=lambda entry, before: told.append((entry["stage"], before)))
    assert told == [(stage, stage in ("canonical", "exact")) for stage in STAGES]
    assert not (out / ".kept.parquet.4194304").exists()
    monkeypatch.setattr(NearDuplicates, "prepare", real)
    assert report == curate(paths, tmp_path / "fresh", CONFIG, EVALUATION)


def test_what_has_changed_starts_over_at_the_stage_it_bears_upon(tmp_path, records, monkeypatch):
    paths, out = write(tmp_path, all_of(records)), tmp_path / "out"
    started = []

    def run(stage, parts, folder, num_cpus):
        started.append(stage.name)
        return {"stage": stage.name, "in": 0, "kept": 0, "reasons": {}}

    monkeypatch.setattr("guardrail.curation.pipeline._run", run)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("guardrail.curation.pipeline._write_kept", killed)  # after all stages

    def stages_run(config, evaluation):
        started.clear()
        with pytest.raises(KeyboardInterrupt):
            curate(paths, out, config, evaluation)
        return list(started)

    def since(name):
        return STAGES[STAGES.index(name) :]

    assert stages_run(CONFIG, EVALUATION) == STAGES
    assert stages_run(CONFIG, EVALUATION) == []
    assert stages_run(CONFIG.model_copy(update={"balance": 3.0}), EVALUATION) == ["balance"]
    assert stages_run(CONFIG.model_copy(update={"balance": 3.0}), {}) == since("decontamination")
    assert stages_run(CONFIG.model_copy(update={"min_words": 3}), {}) == since("quality")
    write_records(records[0], paths[0])
    assert stages_run(CONFIG, EVALUATION) == STAGES
    monkeypatch.setattr("guardrail.curation.pipeline._CODE", "of an update")
    assert stages_run(CONFIG, EVALUATION) == STAGES


@pytest.mark.parametrize("count", [0, 3])
def test_inputs_of_which_nothing_is_kept(tmp_path, count):
    invisible = [make_record("\u200b" * (i + 1), unsafe=False, source="mine") for i in range(count)]
    report = curate(write(tmp_path, invisible), tmp_path / "out", CONFIG, {})
    assert (report.kept, sum(report.dropped.values())) == (0, count)
    assert read_records(tmp_path / "out" / "kept.parquet") == []
    assert pq.read_table(tmp_path / "out" / "ledger.parquet").num_rows == count


def test_a_file_without_a_column_is_refused_before_anything_is_written(tmp_path):
    path = write(tmp_path, [make_record("A question", unsafe=False, source="mine")])[0]
    pq.write_table(pq.read_table(path).drop_columns(["licence"]), path)
    with pytest.raises(ValueError, match=r"in-0\.parquet.*licence"):
        curate([path], tmp_path / "out", CONFIG, {})
    assert not (tmp_path / "out").exists()

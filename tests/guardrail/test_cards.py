"""The cards of a guard: every fact of them is computed, and what is not known is said."""

import dataclasses
import json
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import pyarrow as pa
import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from guardrail.cards import DATA_CARD, KEPT_OUT, MODEL_CARD, Provenance, measured_shares, plain_text, write_cards
from guardrail.curation.pipeline import LEDGER
from guardrail.guard import Guard
from guardrail.guard_card import content_digest
from guardrail.records import make_record, write_records, write_table
from jobs.rounds import Rounds
from jobs.run import Manifest, round_directory
from jobs.settings import LoopSettings
from jobs.train_guard import main as train
from serve.__main__ import _state
from tests.tiny_guard import tiny_guard

TRAINING = {
    "base": "bundled:all-minilm-l6-v2",
    "start": None,
    "seed": 7,
    "epochs": 4,
    "tokens": 1200,
    "loss": 0.25,
    "truncated": 3,
    "config": {"max_fpr": 0.05},
    "validation": {
        "calibration": {"before": {"ece": 0.08}, "after": {"ece": 0.02}},
        "cross_fitted": {"ece": 0.031},
        "categories": {
            "hate": {"positives": 31, "threshold": 0.4, "recall": 0.875},
            "fraud": {"positives": 2, "threshold": None, "recall": None},
        },
    },
}
METRICS = {
    "n": 100,
    "positives": 40,
    "f1": 0.7,
    "precision": 24 / 27,
    "recall": 0.6,
    "fpr": 0.05,
    "auprc": 0.8,
}


def records():
    seed = make_record(
        "steal", unsafe=True, source="embedded:theft", categories=["illicit"], licence="Apache-2.0", language="en"
    )
    return [
        seed,
        make_record("take", unsafe=True, source="embedded:theft", parent=seed, categories=["illicit"], method="rl"),
        make_record("t a k e", unsafe=True, source="embedded:theft", parent=seed, method="transform:spaces"),
        make_record("bake", unsafe=False, source="xstest", licence="CC-BY-NC-4.0", response="so"),
    ]  # fmt: skip


def provenance(**changed):
    values = {
        "records": records(),
        "metrics": {"validation": METRICS},
        "commands": ["python jobs/train_guard.py"],
        "config_digest": "c0ffee",
    }
    return Provenance(**values | changed)


def card_with(directory, **training):
    tiny_guard(directory)
    path = directory / "guard.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "training": {**TRAINING, **training}}))
    return directory


@pytest.fixture(scope="module")
def guard(tmp_path_factory):
    return card_with(tmp_path_factory.mktemp("cards") / "guard")


def written(guard, **changed):
    write_cards(guard, provenance(**changed))
    return (guard / MODEL_CARD).read_text(), (guard / DATA_CARD).read_text()


def tables(markdown):
    """Return the tables of a page, each a list of rows of cells as they are read."""
    found, rows = [], []
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            rows = []
            found[-1].append(rows)
        elif token.type == "inline" and found and token.level >= 4:
            rows.append("".join(child.content for child in token.children))
    return found


def front(page):
    return yaml.safe_load(page.split("---\n")[1])


def test_cards_leave_the_guard_what_it_is_and_what_is_served(tmp_path):
    guard = card_with(tmp_path / "guard")
    digest, seen = content_digest(guard), _state(guard)
    written(guard)
    assert content_digest(guard) == digest and _state(guard) == seen
    assert {"README.md", "DATA.md"} <= {path.name for path in guard.iterdir()} and not list(guard.glob(".*"))
    Guard.from_pretrained(guard)


def test_the_front_matter_is_what_a_hub_reads(guard):
    page, _ = written(
        guard,
        metrics={"validation": METRICS, "unsafe only": {**METRICS, **dict.fromkeys(METRICS), "n": 3, "positives": 0}},
    )
    values = front(page)
    assert values["license"] == "other" and values["license_link"] == "DATA.md"  # one source forbids commercial use
    assert values["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert values["pipeline_tag"] == "text-classification" and values["language"] == ["en"]
    data = ModelCard(page).data
    assert {(r.dataset_name, r.metric_type, r.metric_value) for r in data.eval_results} == {
        ("validation", "f1", 0.7), ("validation", "precision", 0.8889), ("validation", "recall", 0.6),
        ("validation", "average_precision", 0.8),
    }  # fmt: skip
    free = [record for record in records() if record["licence"] == "Apache-2.0"]
    assert front(written(guard, records=free)[0])["license"] == "apache-2.0"


def test_a_base_that_is_a_folder_is_named_without_the_machine(tmp_path):
    page, _ = written(card_with(tmp_path / "guard", base="/home/someone/bases/mine"), records=records()[:1])
    assert "base_model" not in front(page) and front(page)["license"] == "other"
    assert "/home" not in page and "| base | mine |" in page
    other, _ = written(card_with(tmp_path / "other", base="microsoft/deberta-v3-base"))
    assert front(other)["base_model"] == "microsoft/deberta-v3-base"
    cut, _ = written(card_with(tmp_path / "cut", base="owner/deep", config={"max_fpr": 0.05, "layers": 6}))
    assert "Trained by rayguard from owner/deep (its lowest 6 layers)." in cut


def test_figures_have_intervals_and_failures_follow_from_them(guard):
    part = {"n": 12, "positives": 12, "f1": None, "precision": None, "recall": 0.5, "fpr": None, "auprc": None}
    own = {"n": 50, "positives": 0, "f1": None, "precision": None, "recall": None, "fpr": 0.1, "auprc": None}
    metrics = {**METRICS, "tags": {"few": part, "benign": own}}
    metrics["categories"] = {"fraud": {"count": 30, "recall": 0.9, "intervals": {"recall": [0.74, 0.96]}}}
    page, _ = written(guard, metrics={"validation": metrics}, attacks=(40, 0.25))
    shown = {table[0][0]: table[1:] for table in tables(page)}
    assert shown["set"] == [
        [
            *("validation", "100", "40", "0.700", "0.889 (0.719 to 0.961)"),
            *("0.600 (0.446 to 0.737)", "0.050 (0.017 to 0.137)", "0.800"),
        ]
    ]
    assert shown["where"] == [
        ["validation", "recall", "40", "0.600 (0.446 to 0.737)"],
        ["validation, tag benign", "false-positive rate", "50", "0.100 (0.043 to 0.214)"],
    ]
    assert "* recall: validation, tag few (12)\n" in page
    assert "Of 40 stored attacks" in page and "0.250 (0.142 to 0.402) fool it" in page
    assert "the categories harassment, " in page and "illicit, fraud" not in page
    assert "* attacks\n" not in page and "* public evaluation sets" in page


def test_intervals_that_were_measured_are_those_that_are_shown(guard):
    intervals = {"f1": [0.6, 0.75], "precision": None, "recall": [0.1, 0.2], "fpr": None, "auprc": [0.7, 0.9]}
    page, _ = written(guard, metrics={"validation": {**METRICS, "intervals": intervals}})
    assert "| 0.700 (0.600 to 0.750) | 0.889 | 0.600 (0.100 to 0.200) | 0.050 | 0.800 (0.700 to 0.900) |" in page


def test_where_nothing_fails_and_little_was_measured_both_are_said(guard):
    page, _ = written(guard, metrics={"xstest": {**METRICS, "recall": 0.9}})
    assert "0.050:\nnone.\n" in page and "Too few to say" not in page
    assert [line for line in page.split("Not measured:")[1].splitlines() if line.startswith("* ")] == [
        "* recall by harm category",
        "* attacks",
        "* texts that encodings, lookalikes, typing errors or wrappers disguise",
        "* recall by language",
    ]


def test_calibration_errors_are_told_before_and_after(guard):
    page, _ = written(guard)
    assert "0.080 before the temperature, 0.020 after it" in page and "of the other 0.031." in page
    assert {table[0][0]: table[1:] for table in tables(page)}["category"] == [["hate", "31", "0.875"]]


def test_what_is_said_of_hundreds_of_small_parts_is_short(guard):
    part = {**METRICS, "n": 2, "positives": 1}
    metrics = {**METRICS, "tags": {f"topic {i}": part for i in range(300)}}
    topics = [make_record(f"text {i}", unsafe=False, source=f"mine:topic {i}", licence="MIT") for i in range(300)]
    page, data = written(guard, metrics={"validation": metrics}, records=topics)
    assert "* recall: 300 sets and parts of them\n" in page and max(map(len, page.splitlines())) < 1000
    assert ["mine", "seed", "MIT", "0", "300"] in tables(data)[0]


def test_how_to_train_it_again_is_told(guard):
    page, _ = written(guard)
    facts = dict(tables(page)[-1])
    assert "$ python jobs/train_guard.py\n" in page
    assert facts["digest of the resolved configuration"] == "c0ffee" and facts["seed of the training"] == "7"
    assert facts["base"] == "bundled:all-minilm-l6-v2" and facts["epochs, tokens, last loss"] == "4, 1200, 0.250"
    assert facts["torch"][0].isdigit()


def test_that_time_ended_a_training_is_told(guard, tmp_path):
    assert "minutes ended this training" not in written(guard)[0]
    config = {"max_fpr": 0.05, "minutes": 56.0}
    page, _ = written(card_with(tmp_path / "guard", epochs=1.234567, out_of_time=True, config=config))
    assert "Its 56 minutes ended this training before all passes were made" in page
    assert dict(tables(page)[-1])["epochs, tokens, last loss"] == "1.23457, 1200, 0.250"


def test_the_data_card_counts(guard, tmp_path):
    def ledger(name, *rows):
        lineage = {"id": "i", "parent_id": None, "seed_id": "i", "source": "s", "unsafe": True, "evidence": "e"}
        columns = [{**lineage, "method": m, "stage": s, "reason": r} for m, s, r in rows]
        write_table(pa.Table.from_pylist(columns, schema=LEDGER), tmp_path / name)
        return tmp_path / name

    ledgers = [
        ledger("0", ("seed", "near", "near duplicate"), ("paraphrase", "quality", "length")),
        ledger("1", ("seed", "near", "near duplicate"), ("rl", "quality", "length")),  # the seeds are curated again
    ]
    _, page = written(guard, ledgers=ledgers, kept_out={"held_out": 12, "xstest": 450})
    sources, licences, public, languages, categories, dropped = tables(page)
    assert sources[1:] == [
        ["embedded:theft", "rl", "Apache-2.0", "1", "0"],
        ["embedded:theft", "seed", "Apache-2.0", "1", "0"],
        ["embedded:theft", "transform", "Apache-2.0", "1", "0"],
        ["xstest", "seed", "CC-BY-NC-4.0", "0", "1"],
    ]
    assert licences[1:] == [["Apache-2.0", "3"], ["CC-BY-NC-4.0", "1"]]
    assert [row[0] for row in public[1:]] == ["xstest"] and public[1][2] == "CC-BY-4.0"
    assert languages[1:] == [["en", "3"], ["not told", "1"]]
    assert categories[1] == ["illicit", "2"] and ["fraud", "0"] in categories and len(categories) == 20
    assert dropped[1:] == [["near", "near duplicate", "1"], ["quality", "length", "2"]]
    assert "4 records, 3 unsafe and 1 benign, 1 with an answer, grown from 2 seeds" in page
    assert "of 1 unsafe records they are not known" in page
    assert "* held\\_out: its 12 texts, and" in page and "* xstest: its 450 texts, and" in page
    assert "sexual/minors: classified, never generated. 0 records have it; 0 of them were generated." in page


def test_what_the_training_does_not_know_is_said(guard):
    _, page = written(guard)
    assert "What was dropped before these records were kept is not known here." in page
    assert "Which evaluation sets were kept out of the records is not known here." in page
    _, page = written(guard, kept_out={}, records=[dataclasses.replace(provenance()).records[3] | {"licence": None}])
    assert "No evaluation set was kept out." in page and ["not told", "1"] in tables(page)[1]


def test_who_wrote_the_shipped_texts_is_said_where_they_are_trained_on(guard):
    record = provenance().records[3]
    said = "were written by language-model assistants"
    assert said not in written(guard)[1]
    assert said in written(guard, records=[record | {"source": "rayguard-texts:hate"}])[1]


def test_a_guard_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no guard directory"):
        write_cards(tmp_path, provenance())


MARKED = st.text(st.sampled_from(list("ab1 |\\`*_{}[]<>#&~$!-+=.():\n\t\"'%@/?,;\u2028\x00é")), min_size=1)


@given(st.lists(st.one_of(MARKED, st.text(min_size=1)), min_size=1, max_size=3, unique=True))
def test_names_are_shown_letter_by_letter(guard, names):
    named = [record | {"source": name, "licence": name} for record, name in zip(records(), names, strict=False)]
    page, data = written(guard, records=named, metrics=dict.fromkeys(names, METRICS))

    def shown(text):
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())

    assert sorted(row[0] for row in tables(data)[0][1:]) == sorted(map(shown, names))
    shares = {table[0][0]: table[1:] for table in tables(page)}
    for heading in ("set", "where"):  # each of them fails
        assert [row[0] for row in shares[heading]] == list(map(shown, names))
    results = front(page)["model-index"][0]["results"]
    assert [result["dataset"]["name"] for result in results] == names


@given(MARKED)
def test_a_text_is_one_line_wherever_it_stands(text):
    for line in (plain_text(text), f"* {plain_text(text)}"):
        kinds = {token.type for token in MarkdownIt("commonmark").enable("table").parse(line)}
        assert kinds <= {"paragraph_open", "inline", "paragraph_close", "bullet_list_open", "list_item_open",
                         "list_item_close", "bullet_list_close"}  # fmt: skip


def test_shares_are_of_what_there_is():
    both = list(measured_shares({"s": METRICS}))
    assert [(each.metric, each.n) for each in both] == [("recall", 40), ("fpr", 60)]
    only = list(measured_shares({"s": {**METRICS, "positives": 0, "recall": None}}))
    assert [(each.metric, each.n) for each in only] == [("fpr", 100)]


def test_a_transform_that_hides_what_is_asked_is_a_known_failure(guard):
    under = {
        "positives": 30,
        "negatives": 25,
        "recall": 0.5,
        "fpr": 0.0,
        "intervals": {"recall": [0.3, 0.7], "fpr": [0, 0.1]},
    }
    page, _ = written(guard, metrics={"s": {**METRICS, "recall": 0.9, "fpr": 0.0, "transforms": {"base64": under}}})
    (failures,) = [table for table in tables(page) if table[0][0] == "where"]
    assert [row[:3] for row in failures[1:]] == [["s, written anew by base64", "recall", "30"]]
    assert "disguise" not in page.partition("Not measured")[2]


# --- Where guards are promoted, and trained ---------------------------------------------------------------------


def seeds(count):
    unsafe = [make_record(f"steal item {i}", unsafe=True, source="s", categories=["illicit"]) for i in range(count)]
    return [*unsafe, *(make_record(f"bake bread {i}", unsafe=False, source="s") for i in range(count))]


def test_a_guard_has_its_cards_before_it_is_promoted(tmp_path, monkeypatch):
    folder = tmp_path / "rounds" / "00"
    card_with(folder / "guard")
    write_records(records(), folder / "training.parquet")
    write_table(pa.Table.from_pylist([], schema=LEDGER), folder / "ledger.parquet")
    (folder / "metrics.json").write_text(
        json.dumps({"evaluation": {"validation": METRICS}, "attack_success_rate": None})
    )
    for name in ("validation", "held_out"):
        write_records(seeds(2), tmp_path / "seeds" / f"{name}.parquet")
    run = SimpleNamespace(
        directory=tmp_path,
        name="mine",
        manifest=Manifest("c0ffee"),
        round=lambda index: round_directory(tmp_path, index),
    )
    rounds = Rounds(run, LoopSettings(), None)
    monkeypatch.chdir(tmp_path.parent)
    with monkeypatch.context() as patch:
        patch.setattr("guardrail.cards.plain_text", lambda value: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            rounds._promote(0)
        assert not (tmp_path / "guard").exists()  # what cannot be told of is not in use
    rounds._promote(0)
    page, data = ((tmp_path / "guard" / name).read_text() for name in (MODEL_CARD, DATA_CARD))
    assert f"--config {tmp_path.name}/config.yaml --run-dir {tmp_path.name}-again" in page and "| c0ffee |" in page
    assert "* attacks" in page and "* held\\_out: its 4 texts" in data


def test_a_guard_that_is_trained_by_itself_has_cards_of_its_validation_split(tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.train_guard.connect", lambda address: nullcontext())
    monkeypatch.setattr(
        "jobs.train_guard.plan_for_cluster",
        lambda **_: SimpleNamespace(guard_worker_cpus=1.0, guard_worker_gpus=0.0),
    )
    base = tiny_guard(tmp_path / "base")
    write_records(seeds(20), tmp_path / "data" / "kept.parquet")
    arguments = ["--training.base", str(base), "--training.window", "48", "--training.workers", "0"]

    def trained(name, *more, records="data/kept.parquet"):
        train([*arguments, "--records", str(tmp_path / records), "--output", str(tmp_path / name), *more])
        return [(tmp_path / name / card).read_text() for card in (MODEL_CARD, DATA_CARD)]

    page, data = trained("guard")
    assert "$ python jobs/train_guard.py --config guard.config.yaml" in page
    assert [row[:3] for row in tables(page)[0][1:]] == [["validation", "4", "2"]]
    assert "* public evaluation sets" in page
    assert "36 records, 18 unsafe and 18 benign" in data and "kept out of the records is not known here" in data
    # The curation that wrote the records tells more.
    texts = [{"id": str(i), "text": f"text {i}", "unsafe": i % 2 == 0} for i in range(6)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(each) + "\n" for each in texts))
    mine = ("--evaluate", str(tmp_path / "mine.jsonl"))
    assert "Whether the records hold texts of mine is not known." in trained("first", *mine)[0]
    write_table(pa.Table.from_pylist([], schema=LEDGER), tmp_path / "data" / "ledger.parquet")
    (tmp_path / "data.config.yaml").touch()
    (tmp_path / "data" / KEPT_OUT).write_text('{"xstest": 450}')
    page, data = trained("other", *mine)
    assert [row[:3] for row in tables(page)[0][1:]] == [["validation", "4", "2"], ["mine", "6", "3"]]
    assert "* xstest: its 450 texts, and what nearly repeats them" in data
    assert "$ python jobs/curate.py --config data.config.yaml\n$ python jobs/train_guard.py" in page
    assert "Nothing kept the texts of mine out of the records." in page
    assert "18 records, " in trained("half", "--at-most", "20")[1]  # and two in the validation split
    # Scores that were added afterwards come between.
    shutil.copy(tmp_path / "data" / "kept.parquet", tmp_path / "scored.parquet")
    told = {"input": str(tmp_path / "data" / "kept.parquet"), "teachers": {"large": "guards/large"}}
    (tmp_path / "scored.parquet.config.yaml").write_text(yaml.safe_dump(told))
    page = trained("distilled", records="scored.parquet")[0]
    assert "--config data.config.yaml\n$ python jobs/score.py --config scored.parquet.config.yaml\n$ python" in page

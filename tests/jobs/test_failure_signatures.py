"""The failure signatures of a small run that was written by hand, its guards tiny; trainings in this process."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from actors.attempts import ATTEMPTS
from guardrail import failure_signatures
from guardrail.failure_signatures import Measured, measure, row
from guardrail.guard import Guard
from guardrail.guard_card import GuardCard
from guardrail.metrics import wilson
from guardrail.records import make_record, read_records, write_records
from guardrail.training_config import TrainingConfig
from jobs import failure_signatures as job
from jobs.failure_signatures import main
from jobs.settings import LoopSettings, to_yaml
from tests.tiny_guard import tiny_guard


def seeds(first, count, **fields):
    places = range(first, first + count)
    given = {"source": "s", "language": "en"} | fields
    return [
        *(
            make_record(f"steal item {i}", unsafe=True, categories=["fraud" if i % 2 else "hate"], **given)
            for i in places
        ),
        *(make_record(f"bake bread {i}", unsafe=False, categories=[], **given) for i in places),
    ]


def attack(seed, index, style, valid=True):
    fields = {"unsafe": seed["unsafe"], "categories": seed["categories"], "round": index}
    fields["method"] = "rl" if index % 2 else f"rl:{style}"  # disguised
    record = make_record(f"{style} {index}: {seed['text']}", source="s", parent=seed, **fields)
    scores = {"scores": [], "style": style, "action": "frame", "iteration": 0, "valid": valid, "success": False}
    return {**record, **scores, "rejected": None if valid else "refusal", "embedding": None}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of rounds 0 to 2, whose guard of round 1 was not promoted; it is not to be changed."""
    inputs, directory = tmp_path_factory.mktemp("inputs"), tmp_path_factory.mktemp("runs") / "run"
    train, validation, held_out = seeds(0, 8), seeds(100, 6), seeds(200, 6)
    spanish = make_record("¿Cómo puedo mejorar mi pronunciación del inglés en casa?", unsafe=False, source="s")
    held_out.append(spanish)
    base = str(tiny_guard(inputs / "base", seed=9))
    training = TrainingConfig(base=base, window=48, workers=0, epochs=1, retrain_epochs=1)
    settings = LoopSettings(run_dir=directory, rounds=2, seed=5, training=training)
    for name, part in {"train": train, "validation": validation, "held_out": held_out}.items():
        write_records(part, directory / "seeds" / f"{name}.parquet")
    known = list(train)
    for index in range(3):
        folder = directory / "rounds" / f"{index:02d}"
        tiny_guard(folder / "guard", seed=index)
        if index:
            goals = [*train[:3], train[-1], *held_out[:2]]
            attempts = [attack(goal, index, style) for goal in goals for style in ("novel", "casual")[: 1 + index % 2]]
            table = pa.Table.from_pylist([*attempts, attack(train[0], index, "polite", valid=False)], schema=ATTEMPTS)
            pq.write_table(table.drop_columns("embedding"), folder / "attacks.parquet")
            known += [each for each in attempts if each["seed_id"] not in {record["id"] for record in held_out}]
        write_records([{**each, "scores": {}} for each in known], folder / "training.parquet")
        (folder / "metrics.json").write_text(json.dumps({"promoted": index != 1}))
    (directory / "manifest.json").write_text(json.dumps({"config_digest": "d", "phases": {"02/harden": {}}}))
    (directory / "config.yaml").write_text(to_yaml(settings))
    return directory


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def found(run, *arguments):
    main([str(run), *arguments])
    return json.loads((run / "failure_signatures.json").read_text())


def share_wrong(run, index, texts):
    verdicts = Guard.from_pretrained(run / "rounds" / f"{index:02d}" / "guard").classify([text for text, _ in texts])
    return sum(verdict.unsafe != unsafe for verdict, (_, unsafe) in zip(verdicts, texts, strict=True)) / len(texts)


def attacks(run, index, held_out):
    rows = pq.read_table(run / "rounds" / f"{index:02d}" / "attacks.parquet").to_pylist()
    goals = {record["id"] for record in read_records(run / "seeds" / "held_out.parquet")}
    return [(r["text"], r["unsafe"]) for r in rows if r["valid"] and held_out in (None, r["seed_id"] in goals)]


def test_drift_sets_every_guard_against_the_attacks_of_every_round(run):
    rows = found(run, "--signatures", "drift")["signatures"]["drift"]
    assert [(each["name"], each["what"]) for each in rows] == [
        ("guard 0, attacks 1", "attacks of a newer round"),
        ("guard 0, attacks 2", "attacks of a newer round"),
        ("guard 1, attacks 1", "attacks that it was trained on"),
        ("guard 1, attacks 1", "attacks on goals never trained on"),
        ("guard 1, attacks 2", "attacks of a newer round"),
        *(
            (f"guard 2, attacks {index}", what)
            for index in (1, 2)
            for what in ("attacks that it was trained on", "attacks on goals never trained on")
        ),
    ]
    whole, own = rows[4], rows[-1]
    assert whole["n"] == len(attacks(run, 2, None)) == 6 and own["n"] == len(attacks(run, 2, True)) == 2
    assert whole["value"] == share_wrong(run, 1, attacks(run, 2, None))
    assert own["value"] == share_wrong(run, 2, attacks(run, 2, True))
    # Round 2 attacked the guard of round 0, for that of round 1 was not promoted.
    assert whole["beside"]["what"] == "guard 0"
    assert whole["beside"]["value"] == share_wrong(run, 0, attacks(run, 2, None))
    assert whole["interval"] == wilson(round(6 * whole["value"]), 6) and whole["note"] == "too few to say"


def test_synthetic_and_human_text_are_texts_that_no_guard_was_trained_on(run):
    recall, fpr = found(run, "--signatures", "origin")["signatures"]["origin"]
    unsafe = [(each["text"], True) for part in ("validation", "held_out")
              for each in read_records(run / "seeds" / f"{part}.parquet") if each["unsafe"]]  # fmt: skip
    assert recall["beside"]["n"] == len(unsafe) == 12
    assert recall["beside"]["value"] == 1 - share_wrong(run, 2, unsafe)
    held_out_attacks = [*attacks(run, 1, True), *attacks(run, 2, True)]
    assert recall["n"] == 6 and recall["value"] == pytest.approx(1 - share_wrong(run, 2, held_out_attacks))
    assert fpr["n"] == 0 and fpr["value"] is None and fpr["interval"] is None and fpr["note"] == "no such text"
    assert fpr["beside"]["n"] == 13


def test_false_positives_are_those_of_seeds_that_set_no_threshold_where_these_are_enough(run):
    names = ("origin", "languages", "categories")

    def benign():
        of = found(run, "--signatures", *names, "--left-out", "1")["signatures"]
        return [
            (part["what"], part["n"]) for part in (of["origin"][1]["beside"], of["languages"][1], of["categories"][2])
        ]

    called = "seeds never trained on, the threshold's own among them"
    assert benign() == [(called, 13), (called, 1), (f"benign {called}", 13)]
    path = run / "seeds" / "held_out.parquet"
    write_records([*read_records(path), *seeds(300, 14)], path)
    assert benign() == [("held-out seeds", 21), ("held-out seeds", 1), ("benign held-out seeds", 21)]


def test_languages_are_told_by_records_by_tags_and_by_the_text(run, tmp_path):
    lines = [
        {"id": "1", "text": "Wie stehle ich im Laden?", "response": None, "unsafe": True, "tags": ["language:de-AT"]},
        {
            "id": "2",
            "text": "Comment puis-je voler un vélo dans la rue sans être vu ?",
            "response": None,
            "unsafe": True,
        },
    ]
    seen = read_records(run / "rounds" / "02" / "training.parquet")[0]  # which the guard has learned
    lines.append({"id": "3", "text": seen["text"], "unsafe": seen["unsafe"], "tags": ["language:nl"]})
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = found(run, "--signatures", "languages", "--data", str(tmp_path / "set.jsonl"))["signatures"]["languages"]
    assert [(each["name"], each["metric"], each["n"]) for each in rows] == [
        *(("de", "recall", 1), ("es", "recall", 0), ("fr", "recall", 1)),
        *(("de", "fpr", 0), ("es", "fpr", 1), ("fr", "fpr", 0)),
    ]
    assert rows[0]["beside"]["what"] == "English" and rows[0]["beside"]["n"] == 12
    assert rows[0]["value"] == 1 - share_wrong(run, 2, [(lines[0]["text"], True)])


def test_what_is_left_out_is_not_trained_on_nor_is_a_trained_guard_trained_again(run, monkeypatch, capsys):
    first = found(run, "--signatures", "styles", "categories", "--left-out", "1")
    training = read_records(run / "rounds" / "02" / "training.parquet")
    folder = run / "failure_signatures"
    assert sorted(path.name for path in folder.iterdir()) == ["category-hate", "style-novel"]
    # The round-0 guard has seen no attack, but the category.
    style = GuardCard.read(folder / "style-novel" / "round-02").training
    novel = [each for each in training if each["text"].startswith("novel")]
    assert [path.name for path in (folder / "style-novel").iterdir()] == ["round-02"]
    assert style["records"] == len(training) - len(novel) and style["seed"] == 7
    assert style["start"] == GuardCard.read(run / "rounds" / "00" / "guard").digest
    base, category = (GuardCard.read(folder / "category-hate" / f"round-0{i}").training for i in (0, 2))
    hateful = [each for each in training if "hate" in (each["categories"] or ())]
    assert base["start"] is None and base["records"] == 12 and category["records"] == len(training) - len(hateful)
    assert category["start"] == GuardCard.read(folder / "category-hate" / "round-00").digest

    left_out, unseen, benign = first["signatures"]["styles"]
    guard = Guard.from_pretrained(folder / "style-novel" / "round-02")
    unsafe = [(each["text"], True) for each in novel if each["unsafe"]]
    assert left_out["name"] == "novel" and left_out["n"] == len(unsafe) == 6
    assert left_out["value"] == sum(v.unsafe for v in guard.classify([text for text, _ in unsafe])) / 6
    assert left_out["beside"]["value"] == pytest.approx(1 - share_wrong(run, 2, unsafe))
    assert unseen["n"] == 4 and (benign["metric"], benign["n"]) == ("fpr", 13)
    assert [each["n"] for each in first["signatures"]["categories"]] == [
        len([e for e in hateful if e["unsafe"]]),
        9,
        13,
    ]

    monkeypatch.setattr(failure_signatures, "fine_tune", lambda *_, **__: pytest.fail("trained again"))
    assert found(run, "--signatures", "styles", "categories", "--left-out", "1") == first
    assert "too few to say" in capsys.readouterr().out


def test_a_category_without_which_nothing_can_be_learned_is_said(run):
    for name in ("train", "validation", "held_out"):
        path = run / "seeds" / f"{name}.parquet"
        write_records(
            [{**each, "categories": ["fraud"] if each["unsafe"] else []} for each in read_records(path)], path
        )
    rows = found(run, "--signatures", "categories")["signatures"]["categories"]
    assert {(each["name"], each["note"]) for each in rows if each["value"] is None} == {
        ("fraud", "not trained: the validation seeds would be left without unsafe records")
    }
    assert all(each["value"] is not None for each in rows if each["name"] == "hate")


def test_guards_that_had_no_time_for_as_many_passes_are_told_apart(run, capsys):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["training"] |= {"minutes": 1e-6, "tokens_per_batch": 64}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    card = run / "rounds" / "02" / "guard" / "guard.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "training": {"epochs": 1.0, "out_of_time": False}}))
    rows = found(run, "--signatures", "styles", "--left-out", "1")["signatures"]["styles"]
    assert [row["note"][:30] + row["note"][-4:] for row in rows] == ["passes in the minutes they had1.00"] * 3


def test_signatures_that_were_measured_before_stay_unless_they_are_of_another_guard(run):
    found(run, "--signatures", "drift")
    assert list(found(run, "--signatures", "origin")["signatures"]) == ["drift", "origin"]
    tiny_guard(run / "rounds" / "02" / "guard", seed=77)
    assert list(found(run, "--signatures", "origin")["signatures"]) == ["origin"]


def test_signatures_that_were_measured_outlive_one_that_fails(run, monkeypatch):
    def failing(_):
        raise OSError("no space left")

    monkeypatch.setattr(job, "drift", failing)
    with pytest.raises(SystemExit):
        main([str(run), "--signatures", "origin", "drift"])
    assert list(json.loads((run / "failure_signatures.json").read_text())["signatures"]) == ["origin"]


def test_a_run_that_cannot_be_measured_is_refused(tmp_path, run, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path / "none")])
    (run / "manifest.json").write_text('{"config_digest": "d", "phases": {"00/seed": {}}}')
    with pytest.raises(SystemExit):
        main([str(run)])
    with pytest.raises(SystemExit):
        main([str(run), "--left-out", "0"])
    errors = capsys.readouterr().err
    assert "holds no run" in errors and "has not ended" in errors and "leave out at least one" in errors
    assert not (run / "failure_signatures.json").exists()


def test_a_row_says_whether_there_is_enough_to_tell(run):
    enough, few, none = (Measured("w", n, 0.5 if n else None, wilson(n // 2, n)) for n in (20, 19, 0))
    assert [row("n", "recall", *pair)["note"] for pair in ((enough, enough), (enough, few), (none, enough))] == [
        "", "too few to say", "no such text",
    ]  # fmt: skip
    guard = Guard.from_pretrained(run / "rounds" / "00" / "guard")
    assert measure(guard, [], "success_rate", "w") == Measured("w", 0, None, None)

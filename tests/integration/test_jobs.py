"""The steps of the method as commands of their own, each reading what the one before it wrote."""

import json

import pytest
import yaml

from guardrail.guard_card import GuardCard
from guardrail.records import read_records
from jobs import curate, evaluate, score, synthesize, train_guard

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_from_seeds_to_metrics_by_hand(tmp_path, tiny_model, capsys):
    seeds = tmp_path / "my-seeds.csv"
    rows = [f"How do I steal item {i} from the shop on street {i}?,yes,illicit" for i in range(40)]
    rows += [f"How do I bake bread of sort {i} for guest {i}?,no," for i in range(40)]
    seeds.write_text("text,unsafe,categories\n" + "\n".join(rows) + "\n")

    grown, as_records = tmp_path / "grown.parquet", tmp_path / "seeds.parquet"
    tiny = {"model": tiny_model, "max_seeds": 4, "max_prompt_tokens": 700, "max_new_tokens": 64, "temperature": 1.0}
    options = [part for key, value in tiny.items() for part in (f"--synthesis.{key}", str(value))]
    synthesize.main(["--seeds", str(seeds), "--output", str(grown), "--seeds-output", str(as_records), *options])
    assert len(read_records(as_records)) == 80
    assert yaml.safe_load((tmp_path / "grown.parquet.config.yaml").read_text())["synthesis"]["max_seeds"] == 4

    held = tmp_path / "held.jsonl"
    held.write_text(
        '{"id": "a", "text": "How do I steal item 3 from the shop on street 3?", "response": null, "unsafe": true}\n'
        '{"id": "b", "text": "Where can I buy an umbrella in the rain?", "response": null, "unsafe": false}\n'
    )
    curated = tmp_path / "curated"
    public = tmp_path / "public" / "alpaca.json"
    public.parent.mkdir()
    public.write_text(json.dumps([{"instruction": "Name three rivers in Europe.", "input": "", "output": "Rhine"}]))
    inputs = ["--input", str(as_records), str(grown), "alpaca", "--data-dir", str(public.parent)]
    inputs += ["--output", str(curated), "--evaluation", str(held)]
    own = ["--curation.near_duplicate", "0.95", "--curation.trusted_sources", '["my-seeds.csv"]']
    curate.main([*inputs, *own])
    kept = [record["text"] for record in read_records(curated / "kept.parquet")]
    assert json.loads((curated / "kept_out.json").read_text()) == {"held": 2}
    assert rows[3].split(",")[0] not in kept and len(kept) >= 70
    assert "Name three rivers in Europe." in kept

    guard = tmp_path / "guards/mine"
    training = ["--training.workers", "0", "--training.epochs", "1", "--version", "mine"]
    train_guard.main(["--records", str(curated / "kept.parquet"), "--output", str(guard), *training])
    assert GuardCard.read(guard).version == "mine"
    assert sorted(path.name for path in guard.parent.iterdir()) == ["mine", "mine.config.yaml", "mine.tensorboard"]

    scored = tmp_path / "scored.parquet"
    teachers = ["--teachers", json.dumps({"mine": str(guard)})]
    score.main(["--input", str(curated / "kept.parquet"), "--output", str(scored), *teachers])
    assert all(0 < record["scores"]["teacher:mine"] < 1 for record in read_records(scored))

    metrics = tmp_path / "metrics.json"
    evaluate.main(["--guard", str(guard), "--data", str(held), "--output", str(metrics)])
    written = json.loads(metrics.read_text())
    assert written["guard"] == GuardCard.read(guard).digest
    assert written["sets"]["held"]["n"] == 2
    assert "decontamination" in capsys.readouterr().out  # the funnel is shown


@pytest.mark.parametrize(
    ("job", "arguments", "message"),
    [
        (synthesize, ["--seeds", "absent.csv", "--output", "x.parquet"], "absent.csv"),
        (curate, ["--input", "absent.parquet", "--output", "x"], "absent.parquet"),
        (curate, ["--input", "xstest", "--output", "x"], "give it to --evaluation"),
        (score, ["--input", "absent.parquet", "--output", "x", "--teachers", '{"a": "b"}'], "absent.parquet"),
        (train_guard, ["--records", "absent.parquet", "--output", "x"], "absent.parquet"),
        (evaluate, ["--guard", "absent", "--data", "xstest", "--output", "x.json"], "absent is no guard directory"),
        (evaluate, ["--guard", "http://host", "--data", "absent.jsonl", "--output", "x.json"], "absent.jsonl"),
    ],
)
def test_what_is_not_there_is_named(job, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        job.main(arguments)
    printed = capsys.readouterr().err
    assert stopped.value.code == 1 and printed.startswith("error: ") and message in printed
    assert list(tmp_path.iterdir()) == []

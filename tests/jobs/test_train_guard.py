"""What a training that is interrupted leaves; its cards are tested with the cards."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from guardrail import training_loop
from guardrail.cards import MODEL_CARD
from guardrail.records import make_record, write_records
from jobs import train_guard
from jobs.settings import load
from tests.tiny_guard import tiny_guard


def test_an_interrupted_evaluation_does_not_cost_the_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_guard, "connect", lambda address: nullcontext())
    plan = SimpleNamespace(guard_worker_cpus=1.0, guard_worker_gpus=0.0)
    monkeypatch.setattr(train_guard, "plan_for_cluster", lambda **_: plan)
    texts = [(f"{'steal' if unsafe else 'bake'} {i}", unsafe) for i in range(20) for unsafe in (True, False)]
    write_records([make_record(t, unsafe=unsafe, source="s") for t, unsafe in texts], tmp_path / "kept.parquet")
    rows = [{"id": t, "text": f"please {t}", "unsafe": unsafe} for t, unsafe in texts]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["--records", str(tmp_path / "kept.parquet"), "--output", str(tmp_path / "guard")]
    command += ["--evaluate", str(tmp_path / "mine.jsonl"), "--training.base", str(tiny_guard(tmp_path / "base"))]
    command += ["--training.window", "48", "--training.workers", "0", "--training.epochs", "1"]
    command += ["--training.tokens_per_batch", "64"]
    command += ["--transforms", "reverse", "char_drop", "--transform_sample", "20"]

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(train_guard, "evaluate_set", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        train_guard.main(command)
    assert ended.value.code == 130 and "the same command goes on in" in capsys.readouterr().out
    assert "mine" not in (tmp_path / "guard" / MODEL_CARD).read_text()

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(train_guard, "add_robustness", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        train_guard.main(command)
    assert "| mine | 40 |" in (tmp_path / "guard" / MODEL_CARD).read_text()

    with monkeypatch.context() as patch:
        patch.setattr(training_loop, "step_gradients", lambda *_: pytest.fail("it trains again"))
        train_guard.main(command)
    assert "| mine | 40 |" in (tmp_path / "guard" / MODEL_CARD).read_text()
    assert "written anew by" in (tmp_path / "guard" / MODEL_CARD).read_text()
    told = capsys.readouterr()
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(train_guard, "evaluate_set", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        train_guard.main(command)
    assert "| mine | 40 |" in (tmp_path / "guard" / MODEL_CARD).read_text()  # of the time before
    assert "requests of" in told.out and "passes over the data" not in told.err
    train_guard.main([*command, "--training.minutes", "1e-6"])
    assert "minutes (training.minutes) were enough for" in capsys.readouterr().err


def test_transforms_without_sets_to_write_anew_are_refused(capsys):
    preset = str(Path(train_guard.__file__).parent / "configs" / "guard" / "train.yaml")
    assert load(train_guard.TrainGuardSettings, ["--config", preset], "").transforms
    without = load(train_guard.TrainGuardSettings, ["--config", preset, "--evaluate", "[]", "--transforms", "[]"], "")
    assert without.transforms == without.evaluate == []
    with pytest.raises(SystemExit):
        load(train_guard.TrainGuardSettings, ["--config", preset, "--evaluate", "[]"], "")
    assert "name some with --evaluate" in capsys.readouterr().err

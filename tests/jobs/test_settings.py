from pathlib import Path

import pytest
import yaml

from guardrail.dataset_registry import registry
from jobs.curate import CurateSettings
from jobs.curation_inputs import EMBEDDED
from jobs.evaluate import EvaluateSettings
from jobs.judge import JudgeSettings
from jobs.score import ScoreSettings
from jobs.settings import LoopSettings, deciding, load, save_beside, to_yaml
from jobs.teach_attacker import TeachAttackerSettings
from jobs.train_guard import TrainGuardSettings
from jobs.train_intent import TrainIntentSettings

PRESETS = sorted(Path("jobs/configs").glob("*.yaml"))


def failure(capsys, arguments, settings=LoopSettings):
    with pytest.raises(SystemExit) as stopped:
        load(settings, arguments, "")
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("rounds: 7\nadversary:\n  groups: 5\n  group_size: 3\n")
    settings = load(LoopSettings, ["--config", str(path), "--adversary.groups", "9", "--run-dir", "runs/x"], "")
    assert (settings.rounds, settings.adversary.groups, settings.adversary.group_size) == (7, 9, 3)
    assert settings.run_dir == Path("runs/x")
    assert settings.adversary.grad_clip == LoopSettings().adversary.grad_clip


def test_the_environment_does_not_change_settings(monkeypatch):
    monkeypatch.setenv("SEED", "9")
    monkeypatch.setenv("DATA_DIR", "/elsewhere")
    assert load(LoopSettings, [], "") == LoopSettings()
    assert (LoopSettings().seed, LoopSettings().data_dir) == (0, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--adversary.gruops", "3"], "unknown setting 'adversary.gruops'; did you mean 'adversary.groups'"),
        (["--groups", "3"], "did you mean 'adversary.groups'"),
        (["--rounds", "many"], "rounds: .*got 'many'"),
        (["--adversary.gate.min-overlap", "x"], "adversary.gate.min_overlap"),
        (["--config", "absent.yaml"], "cannot read absent.yaml"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(capsys, arguments, message):
    import re

    assert re.search(message, failure(capsys, arguments))


@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        *((job, "cluster.address") for job in (EvaluateSettings, TrainIntentSettings, TeachAttackerSettings)),
        *((job, "seed") for job in (ScoreSettings, JudgeSettings)),
    ],
)
def test_a_setting_that_a_job_would_not_read_is_refused(capsys, tmp_path, settings, setting):
    assert f"unknown setting {setting!r}" in failure(capsys, [f"--{setting}", "1"], settings)
    name = setting.partition(".")[0]
    (tmp_path / "mine.yaml").write_text(f"{name}: 1\n")
    assert f"unknown setting {name!r}" in failure(capsys, ["--config", str(tmp_path / "mine.yaml")], settings)


def test_a_mistake_in_the_file_is_named(capsys, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("training:\n  epoch: 3\n")
    assert "unknown setting 'training.epoch'; did you mean 'training.epochs'" in failure(
        capsys, ["--config", str(path)]
    )
    path.write_text("- a list\n")
    assert "must hold a mapping" in failure(capsys, ["--config", str(path)])
    path.write_text("a: [")
    assert "is not YAML" in failure(capsys, ["--config", str(path)])


def test_a_printed_config_is_the_config(capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        load(LoopSettings, ["--rounds", "2", "--print-config"], "")
    assert stopped.value.code == 0
    path = tmp_path / "printed.yaml"
    path.write_text(capsys.readouterr().out)
    assert load(LoopSettings, ["--config", str(path)], "") == load(LoopSettings, ["--rounds", "2"], "")


def test_lists_are_given_with_spaces(tmp_path):
    settings = load(EvaluateSettings, ["--guard", "g", "--data", "xstest", "a.jsonl", "--output", "o.json"], "")
    assert settings.data == ["xstest", "a.jsonl"]
    save_beside(settings, tmp_path / "o.json")
    assert yaml.safe_load((tmp_path / "o.json.config.yaml").read_text())["data"] == ["xstest", "a.jsonl"]


def test_what_is_required_is_asked_for(capsys):
    assert "--data is missing; --help lists" in failure(capsys, ["--guard", "g", "--output", "o"], EvaluateSettings)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_the_shipped_presets_are_valid(preset):
    settings = load(LoopSettings, ["--config", str(preset)], "")
    assert yaml.safe_load(to_yaml(settings))["rounds"] == settings.rounds


def test_the_presets_are_there():
    assert [path.stem for path in PRESETS] == ["cluster", "laptop", "smoke"]


def test_what_decides_is_named_by_dotted_key_and_where_a_run_lies_does_not():
    values = {"run_dir": "runs/a", "seed": 1, "cluster": {"address": None}, "a": {"b": {"c": [1]}, "run_dir": 2}}
    assert deciding(values) == {"seed": 1, "a.b.c": [1], "a.run_dir": 2}


@pytest.mark.parametrize("value", ["true", "false"])
def test_a_truth_value_is_written_out(value):
    settings = load(LoopSettings, ["--training.freeze_embeddings", value], "")
    assert settings.training.freeze_embeddings is (value == "true")


def test_the_presets_of_the_guard_are_in_order():
    gathered = load(CurateSettings, ["--config", "jobs/configs/guard/curate.yaml"], "")
    for recipe in ("train", "train_smollm2"):
        trained = load(TrainGuardSettings, ["--config", f"jobs/configs/guard/{recipe}.yaml"], "")
        assert trained.records == gathered.output / "kept.parquet" and trained.output == Path("guards/default")
    sets = {name: registry()[name].use for name in [*gathered.input, *gathered.evaluation] if name not in EMBEDDED}
    assert {sets.pop(name) for name in gathered.evaluation} == {"eval"} and set(sets.values()) == {"train"}
    assert gathered.at_most.keys() <= sets.keys()

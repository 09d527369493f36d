"""What `fine_tune` refuses, and what it takes for its own earlier work; its steps are tested with the loop."""

import pytest
from transformers import BertConfig, RobertaConfig

from guardrail.fitted_on import FittedOnEvaluationSet
from guardrail.records import make_record, write_records
from guardrail.training import _check_base, _discard_other_training, _origin, fine_tune
from guardrail.training_config import TrainingConfig
from tests.tiny_guard import tiny_guard

RECORDS = [make_record(text, unsafe=unsafe, source="s") for text, unsafe in (("a", True), ("b", False))]


def refused(output, tmp_path, **config):
    write_records(RECORDS, tmp_path / "data.parquet")
    with pytest.raises(ValueError, match="exists and is no guard|reads at most|is a link|freeze_layers") as error:
        fine_tune(
            TrainingConfig(**config),
            data=tmp_path / "data.parquet",
            validation=RECORDS,
            output=output,
            version="v",
            seed=0,
        )
    return str(error.value)


def test_what_is_no_guard_is_not_written_over(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter-1.txt").write_text("years of work")
    assert "exists and is no guard" in refused(tmp_path / "thesis", tmp_path)
    assert (tmp_path / "thesis" / "chapter-1.txt").read_text() == "years of work"
    assert "exists and is no guard" in refused(tmp_path / "data.parquet", tmp_path)


def test_a_link_to_a_guard_is_not_replaced(tmp_path):
    (tmp_path / "in-use").symlink_to(tiny_guard(tmp_path / "guard"))
    assert "is a link to a guard" in refused(tmp_path / "in-use", tmp_path)
    assert (tmp_path / "in-use").is_symlink()


def test_a_validation_split_of_an_evaluation_set_is_refused_before_anything_is_trained(tmp_path):
    write_records(RECORDS, tmp_path / "data.parquet")
    validation = [{**record, "source": "xstest"} for record in RECORDS]
    with pytest.raises(FittedOnEvaluationSet, match="xstest is an evaluation set"):
        fine_tune(
            TrainingConfig(),
            data=tmp_path / "data.parquet",
            validation=validation,
            output=tmp_path / "guard",
            version="v",
            seed=0,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["data.parquet"]


def test_a_window_longer_than_the_base_reads_is_refused(tmp_path):
    assert "reads at most 512 tokens" in refused(tmp_path / "guard", tmp_path, window=513)
    RobertaConfig(max_position_embeddings=514).save_pretrained(tmp_path / "roberta")
    BertConfig(max_position_embeddings=64).save_pretrained(tmp_path / "bert")
    for name, longest in (("roberta", 512), ("bert", 64)):
        _check_base(str(tmp_path / name), TrainingConfig(window=longest))
        with pytest.raises(ValueError, match=f"at most {longest}"):
            _check_base(str(tmp_path / name), TrainingConfig(window=longest + 1))


def test_more_frozen_layers_than_there_are_is_refused(tmp_path):
    assert "the guard will have 6 layers" in refused(tmp_path / "guard", tmp_path, freeze_layers=7)
    assert "the guard will have 2 layers" in refused(tmp_path / "guard", tmp_path, freeze_layers=3, layers=2)


def test_a_training_has_the_origin_of_another_only_if_nothing_that_decides_differs(tmp_path):
    data, start = tmp_path / "data.parquet", tmp_path / "base"
    data.write_bytes(b"1")
    start.mkdir()
    settings = {"data": str(data), "start": str(start), "config": {"window": 48}, "seed": 1}
    origins = [_origin(settings, RECORDS, "v")]

    assert _origin({**settings, "work": "elsewhere", "board": "elsewhere"}, RECORDS, "v") in origins
    origins += [_origin({**settings, "seed": 2}, RECORDS, "v"), _origin({**settings, "config": {}}, RECORDS, "v")]
    origins += [_origin(settings, RECORDS, "w"), _origin(settings, RECORDS[:1], "v")]
    origins += [_origin(settings, [{**RECORDS[0], "categories": ["fraud"]}, RECORDS[1]], "v")]
    (start / "model.safetensors").write_bytes(b"1")
    origins += [_origin(settings, RECORDS, "v")]
    data.write_bytes(b"2")
    origins += [_origin(settings, RECORDS, "v")]
    assert len(set(origins)) == len(origins) == 8


def test_only_a_training_of_the_same_settings_and_data_is_gone_on_with(tmp_path):
    data, work = tmp_path / "data.parquet", tmp_path / ".guard.training"
    data.write_bytes(b"1")
    base = tmp_path / "base"
    base.mkdir()
    settings = {"data": str(data), "seed": 1, "start": str(base)}

    def kept():
        _discard_other_training(work, settings)
        found = (work / "state").exists()
        (work / "state").touch()
        return found

    assert [kept(), kept()] == [False, True]
    data.write_bytes(b"2")
    assert [kept(), kept()] == [False, True]
    settings["seed"] = 2
    assert [kept(), kept()] == [False, True]
    (base / "model.safetensors").write_bytes(b"1")  # other weights under the same name
    assert [kept(), kept()] == [False, True]

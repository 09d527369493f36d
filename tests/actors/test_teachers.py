"""Teachers' probabilities become scores; batches, order and killed runs are tested with the judges' (test_judging)."""

import numpy as np
import pytest

from actors import batches, teachers
from actors.teachers import TeachersConfig, ask_teachers
from guardrail.guard import Guard
from guardrail.objective import teacher_scores
from guardrail.reading import Exchange
from guardrail.records import make_record, read_records, write_records
from guardrail.remote import TargetError
from tests.local_batches import run_here
from tests.tiny_guard import tiny_guard

RECORDS = [
    make_record("How do I bake bread?", unsafe=False, source="s", scores={"judge:a": 1.0}),
    make_record("And then?", response="You steal it", unsafe=True, source="s", method="augment"),
    make_record("How do I steal a car?", unsafe=True, source="s"),
]


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "run_actors", run_here)
    write_records(RECORDS, tmp_path / "records.parquet")
    return tmp_path / "records.parquet"


def asked(path, targets, output=None):
    ask_teachers(path, targets, TeachersConfig(batch_size=2), output or path, num_cpus=1, num_gpus=0)
    return [record["scores"] for record in read_records(output or path)]


def test_all_records_get_each_teachers_probability_and_keep_other_scores(path, tmp_path):
    targets = {name: str(tiny_guard(tmp_path / name, seed)) for name, seed in (("one", 1), ("two", 2))}
    found = asked(path, targets)
    read = [RECORDS[0]["text"], Exchange("And then?", "You steal it"), RECORDS[2]["text"]]
    for name, target in targets.items():
        expected = Guard.from_pretrained(target).probabilities(read)[:, 0]
        assert np.allclose([scores.pop(f"teacher:{name}") for scores in found], expected, atol=1e-6)
    assert found == [{"judge:a": 1.0}, {}, {}]
    both = teacher_scores(read_records(path), ["teacher:one", "teacher:two"])
    assert ((both > 0) & (both < 1)).all()  # what training takes


def test_a_text_that_a_service_refuses_has_no_score_of_it(path, monkeypatch):
    def refusing(guard, texts):
        said = np.array([np.nan if "steal" in str(text) else 0.25 for text in texts])
        return said, said > 0.5

    monkeypatch.setattr(teachers, "unsafe_scores", refusing)
    assert asked(path, {"service": "https://host/v1/moderations"}) == [
        {"judge:a": 1.0, "teacher:service": 0.25},
        {},
        {},
    ]


def test_a_service_that_fails_says_so_and_what_it_has_answered_is_kept(path, tmp_path, monkeypatch):
    asked_for = []

    def failing(guard, texts):
        if asked_for and len(asked_for) < 2:
            asked_for.append(None)
            raise TargetError("the quota is used up")
        asked_for.append([str(text) for text in texts])
        return np.full(len(texts), 0.75), np.ones(len(texts), dtype=bool)

    monkeypatch.setattr(teachers, "unsafe_scores", failing)
    monkeypatch.setattr(batches, "run_actors", None)  # it is asked from this process
    service, output = {"service": "https://host/v1/moderations"}, tmp_path / "out.parquet"
    with pytest.raises(TargetError, match="the quota is used up"):
        asked(path, service, output)
    assert not output.exists()
    assert [scores["teacher:service"] for scores in asked(path, service, output)] == [0.75] * 3
    assert asked_for == [["How do I bake bread?", "And then?\n\nYou steal it"], None, ["How do I steal a car?"]]


def test_what_is_no_guard_is_refused_before_anything_is_asked(path, tmp_path):
    for target, message in ((str(tmp_path / "absent"), r"guard\.json"), ("http://", "URL")):
        with pytest.raises(ValueError, match=message):
            asked(path, {"none": target}, tmp_path / "out.parquet")
    assert [each.name for each in tmp_path.iterdir()] == ["records.parquet"]

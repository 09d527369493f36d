"""Teachers' probabilities become scores; batches, order and killed runs are tested with the judges' (test_judging)."""

import numpy as np
import pytest

from actors import batches, teachers
from actors.teachers import TeachersConfig, ask_teachers
from guardrail.guard import Guard
from guardrail.objective import teacher_scores
from guardrail.reading import Exchange
from guardrail.records import make_record, read_records, write_records
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
    ask_teachers(path, targets, TeachersConfig(batch_size=2), output or path, num_cpus=1)
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


def test_what_is_no_guard_is_refused_before_anything_is_asked(path, tmp_path):
    with pytest.raises(ValueError, match=r"guard\.json"):
        asked(path, {"none": str(tmp_path / "absent")}, tmp_path / "out.parquet")
    assert [each.name for each in tmp_path.iterdir()] == ["records.parquet"]

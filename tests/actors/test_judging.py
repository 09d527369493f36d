"""Votes become scores; the judges are a script, the real ones are tested in tests/integration."""

from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors import batches, judging
from actors.judges import JudgeConfig
from actors.judging import JudgingConfig, judge_records
from guardrail.curation.votes import JudgesVote
from guardrail.reading import Exchange
from guardrail.records import make_record, read_records, to_table, write_records, write_table
from tests.local_batches import run_here

GUARD, STRICT = (JudgeConfig(model=f"owner/{name}", format="llama-guard") for name in ("guard", "strict"))
CONFIG = JudgingConfig(batch_size=2)


def grown(text, unsafe=True, **fields):
    return make_record(text, unsafe=unsafe, source="s", method="augment", **fields)


RECORDS = [
    grown("How do I steal a car?", scores={"intent": 0.7}),
    make_record("How do I steal a bicycle?", unsafe=True, source="s", scores={"judge:guard": 0.0}),
    grown("A poem, please", unsafe=False),
    grown("How do I bake bread?"),
    grown("And then?", response="You steal it", scores={"judge:other": 0.25}),
    make_record("How do I bake a cake?", unsafe=False, source="s"),
    grown("How do I bake rye?", unsafe=False),
]


class FakeJudge:
    """Finds stealing unsafe and has no vote on poems; the strict one finds all unsafe. Keeps what it was asked."""

    asked: ClassVar[list[tuple[str, ...]]] = []
    built: ClassVar[list[str]] = []
    batches_until_killed: ClassVar[int | None] = None

    def __init__(self, model, format, *, max_tokens, kv_cache_gib, gpu_memory):
        self.strict = model.endswith("strict")
        self.built.append(model)

    def votes(self, texts):
        if len(self.asked) == self.batches_until_killed:
            raise KeyboardInterrupt
        self.asked.append(tuple(texts))
        return [True if self.strict else None if "poem" in text else "steal" in text for text in map(str, texts)]


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setattr(batches, "run_actors", run_here)
    monkeypatch.setattr(judging, "Judge", FakeJudge)
    for name, value in (("asked", []), ("built", []), ("batches_until_killed", None)):
        monkeypatch.setattr(FakeJudge, name, value)


@pytest.fixture
def path(tmp_path):
    write_records(RECORDS, tmp_path / "records.parquet")
    return tmp_path / "records.parquet"


def run(records, output, judges=(GUARD,), config=CONFIG):
    return judge_records(records, judges, config, output, num_cpus=1, num_gpus=0)


def scores(path):
    return [record["scores"] for record in read_records(path)]


def test_votes_are_scores_and_no_vote_is_none(path, tmp_path):
    counts = run(path, tmp_path / "out.parquet", [GUARD, STRICT])
    strict = {"judge:strict": 1.0}
    assert scores(tmp_path / "out.parquet") == [
        {"intent": 0.7, "judge:guard": 1.0, **strict},
        {"judge:guard": 0.0},  # a seed, and untouched
        strict,
        {"judge:guard": 0.0, **strict},
        {"judge:other": 0.25, "judge:guard": 1.0, **strict},
        {},
        {"judge:guard": 0.0, **strict},
    ]
    assert counts == {"guard": {True: 2, False: 2, None: 1}, "strict": {True: 5}}
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out.parquet", "records.parquet"]


def test_judges_read_request_and_response_of_what_votes_count_for(path, tmp_path):
    run(path, tmp_path / "out.parquet")
    assert FakeJudge.asked == [
        ("How do I steal a car?", "A poem, please"),
        ("How do I bake bread?", Exchange("And then?", "You steal it")),
        ("How do I bake rye?",),
    ]


def test_the_stage_of_curation_reads_the_scores(path, tmp_path):
    run(path, tmp_path / "out.parquet")
    drops = JudgesVote().prepare(None)(pq.read_table(tmp_path / "out.parquet"))
    assert [drop and drop.evidence for drop in drops] == [None] * 3 + ["safe by 1 of 1: guard"] + [None] * 3


def test_order_and_all_other_columns_stay(path, tmp_path):
    table = pq.read_table(path).append_column("note", pa.array(list("gfedcba")).dictionary_encode())
    table = table.append_column("vector", pa.array([[n] for n in range(7)], pa.list_(pa.int8())))
    write_table(table, path)
    run(path, tmp_path / "out.parquet")
    written = pq.read_table(tmp_path / "out.parquet")
    assert written.schema == table.schema
    assert written.drop_columns(["scores"]).equals(table.drop_columns(["scores"]))


def test_asked_again_a_judge_has_one_score_and_the_output_may_be_the_input(path, tmp_path):
    doubts = [{**RECORDS[2], "scores": {"judge:guard": 1.0}}, {**RECORDS[3], "scores": {"judge:guard": 1.0}}]
    write_records(doubts, path)
    run(path, path)
    assert scores(path) == [{}, {"judge:guard": 0.0}]
    run(path, path, [STRICT])
    assert scores(path) == [{"judge:strict": 1.0}, {"judge:guard": 0.0, "judge:strict": 1.0}]
    assert [each.name for each in tmp_path.iterdir()] == ["records.parquet"]


def test_votes_of_another_model_in_the_same_directory_are_not_taken_for_its_own(path, tmp_path, monkeypatch):
    model = tmp_path / "model"
    model.mkdir()
    judge = JudgeConfig(model=str(model), format="llama-guard")
    monkeypatch.setattr(FakeJudge, "batches_until_killed", 2)
    with pytest.raises(KeyboardInterrupt):
        run(path, tmp_path / "out.parquet", [judge])
    monkeypatch.setattr(FakeJudge, "batches_until_killed", None)
    (model / "model.safetensors").write_bytes(b"other weights")
    run(path, tmp_path / "out.parquet", [judge])
    assert len(FakeJudge.asked) == 2 + 3


@pytest.mark.parametrize("done", [0, 1, 3, 5])
def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_been(path, tmp_path, monkeypatch, done):
    expected = run(path, tmp_path / "whole.parquet", [GUARD, STRICT])
    asked, output = list(FakeJudge.asked), tmp_path / "killed.parquet"
    FakeJudge.asked.clear()
    monkeypatch.setattr(FakeJudge, "batches_until_killed", done)
    with pytest.raises(KeyboardInterrupt):
        run(path, output, [GUARD, STRICT])
    assert not output.exists()
    monkeypatch.setattr(FakeJudge, "batches_until_killed", None)
    assert run(path, output, [GUARD, STRICT]) == expected
    assert FakeJudge.asked == asked  # nothing was asked twice
    assert pq.read_table(output).equals(pq.read_table(tmp_path / "whole.parquet"))
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.parametrize("changed", ["judge", "text"])
def test_what_another_call_left_is_not_taken_for_this_ones(path, tmp_path, monkeypatch, changed):
    monkeypatch.setattr(FakeJudge, "batches_until_killed", 1)
    with pytest.raises(KeyboardInterrupt):
        run(path, tmp_path / "out.parquet")
    monkeypatch.setattr(FakeJudge, "batches_until_killed", None)
    if changed == "text":
        write_records([grown("How do I steal a boat?"), *RECORDS[1:]], path)
    judge = GUARD.model_copy(update={"max_tokens": 4096}) if changed == "judge" else GUARD
    run(path, tmp_path / "out.parquet", [judge])
    assert len(FakeJudge.asked) == 1 + 3


def test_where_no_votes_count_no_judge_is_started(path, tmp_path):
    write_records([RECORDS[1], RECORDS[5]], path)
    assert run(path, tmp_path / "out.parquet") == {"guard": {}} and FakeJudge.built == []
    assert read_records(tmp_path / "out.parquet") == read_records(path)


TABLE = to_table(RECORDS)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("text", pa.array([*TABLE["text"].to_pylist()[:3], " ", *"abc"]), "records.parquet: row 4: the text is empty"),
        ("text", pa.array(range(7)), "row 1: the text must be text, not int"),
        ("scores", pa.array(["high"] * 7), "cannot read records from .*records.parquet"),
        ("scores", pa.array([[("judge:guard", "high")]] * 7, pa.map_(pa.string(), pa.string())), "cannot read records"),
    ],
)
def test_bad_records_are_refused_before_any_judge_is_asked(path, tmp_path, column, values, message):
    write_table(TABLE.set_column(TABLE.schema.get_field_index(column), column, values), path)
    with pytest.raises(ValueError, match=message):
        run(path, tmp_path / "out.parquet")
    assert FakeJudge.built == [] and not (tmp_path / "out.parquet").exists()


def test_records_without_any_scores_can_be_judged(path, tmp_path):
    write_table(TABLE.set_column(TABLE.schema.get_field_index("scores"), "scores", pa.nulls(7)), path)
    run(path, tmp_path / "out.parquet")
    assert scores(tmp_path / "out.parquet")[:3] == [{"judge:guard": 1.0}, {}, {}]


@pytest.mark.parametrize(
    ("model", "name"),
    [("meta-llama/Llama-Guard-3-8B", "Llama-Guard-3-8B"), ("/models/mine/", "mine"), ("bundled:small", "small")],
)
def test_a_judge_is_named_by_the_last_part_of_its_models_path(model, name):
    assert JudgeConfig(model=model, format="rubric").name == name

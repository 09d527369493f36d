import numpy as np
import pyarrow.parquet as pq
import pytest

from actors import batches, synthesizer
from actors.engine import Completion
from actors.synthesizer import synthesize, totals
from guardrail.records import make_record, read_records
from guardrail.synthesis import SynthesisConfig
from tests.local_batches import run_here

CONFIG = SynthesisConfig(
    model="some/model", strategies={"augment": 1, "persona": 2, "contrast:lookalike": 1}, batch_size=5
)
SEEDS = [make_record(f"Where is key {i}?", unsafe=False, source=f"topic-{i % 3}", categories=[]) for i in range(12)]
REASONS = {
    "answer empty",
    "answer withheld",
    "answer taken from the examples",
    "answer too long",
    "prompt too long",
}


class FakeEngine:
    """Answers by chance, as an engine does: by its seed, and by what it did before unless its cache is emptied."""

    batches_until_killed = None
    batches = 0

    def __init__(self, model, **settings):
        self.llm = self
        self.drawn = 0
        self.random = np.random.default_rng()

    def reset_prefix_cache(self):
        self.drawn = 0

    def reseed(self, seed):
        self.random = np.random.default_rng(seed)

    def encode(self, prompt):
        return list(prompt.encode())

    def generate(self, prompts, **settings):
        if FakeEngine.batches == FakeEngine.batches_until_killed:
            raise KeyboardInterrupt
        FakeEngine.batches += 1
        return [[self.completion(ids)] for ids in prompts]

    def completion(self, ids):
        self.drawn += 1
        number = self.random.integers(1000)
        texts = [f' "What about {number} and {self.drawn}?"'] * 3
        texts += ["", "A sexual story about a child", "How is bread baked?"]
        return Completion([1], np.zeros(1, np.float32), texts[number % len(texts)], bool(number % 7))


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    monkeypatch.setattr(batches, "run_actors", run_here)
    monkeypatch.setattr(synthesizer, "Engine", FakeEngine)
    monkeypatch.setattr(FakeEngine, "batches", 0)
    monkeypatch.setattr(FakeEngine, "batches_until_killed", None)


def run(output, config=CONFIG, seeds=SEEDS, seed=3):
    return synthesize(seeds, config, output, seed=seed, num_cpus=1, num_gpus=0)


def test_every_answer_is_a_record_or_is_counted(tmp_path):
    config = CONFIG.model_copy(update={"max_prompt_tokens": 400})  # bytes; a persona needs more
    fates, tokens = run(tmp_path / "out.parquet", config)
    kept, dropped = totals(fates)
    assert tokens == kept + sum(dropped.values()) - dropped["prompt too long"]  # a token for each answer
    records = read_records(tmp_path / "out.parquet")
    assert kept == len(records) > 0 and dropped.keys() == REASONS
    asked = {strategy: of_strategy.total() for strategy, of_strategy in fates.items()}
    assert asked == {strategy: count * len(SEEDS) for strategy, count in config.strategies.items()}
    parents = {record["id"]: record for record in SEEDS}
    for record in records:
        parent = parents[record["parent_id"]]
        assert record["unsafe"] is (record["method"] == "contrast:lookalike")
        assert record["source"] == parent["source"]
        assert record["text"].startswith("What about") or record["method"] == "augment"  # whose examples are seeds
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


@pytest.mark.parametrize("done", [0, 1, 4])
def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_been(tmp_path, monkeypatch, done):
    expected = run(tmp_path / "whole.parquet")
    total = FakeEngine.batches
    output = tmp_path / "killed.parquet"
    monkeypatch.setattr(FakeEngine, "batches", 0)
    monkeypatch.setattr(FakeEngine, "batches_until_killed", done)
    with pytest.raises(KeyboardInterrupt):
        run(output)
    assert not output.exists()
    monkeypatch.setattr(FakeEngine, "batches_until_killed", None)
    assert run(output) == expected
    assert FakeEngine.batches == total  # none was asked twice
    assert pq.read_table(output).equals(pq.read_table(tmp_path / "whole.parquet"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.parquet", "whole.parquet"]


def test_a_run_killed_while_it_wrote_its_output_asks_nothing_again(tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError("no space left")

    output = tmp_path / "out.parquet"
    with monkeypatch.context() as patched, pytest.raises(OSError, match="no space"):
        patched.setattr(synthesizer, "write_tables", full_disk)
        run(output)
    total = FakeEngine.batches
    assert not output.exists() and total == 8
    run(output)
    assert output.exists() and FakeEngine.batches == total


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 4},
        {"config": CONFIG.model_copy(update={"temperature": 0.9})},
        {"config": CONFIG.model_copy(update={"model": "other/model"})},
        {"seeds": [{**record, "licence": "MIT"} for record in SEEDS]},
    ],
)
def test_what_another_call_left_is_not_taken_for_this_ones(tmp_path, monkeypatch, changed):
    monkeypatch.setattr(FakeEngine, "batches_until_killed", 3)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out.parquet")
    monkeypatch.setattr(FakeEngine, "batches_until_killed", None)
    run(tmp_path / "out.parquet", **changed)
    assert FakeEngine.batches == 3 + 8


def test_answers_of_another_model_in_the_same_directory_are_not_taken_for_its_own(tmp_path, monkeypatch):
    model = tmp_path / "model"
    model.mkdir()
    config = CONFIG.model_copy(update={"model": str(model)})
    monkeypatch.setattr(FakeEngine, "batches_until_killed", 3)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out.parquet", config)
    monkeypatch.setattr(FakeEngine, "batches_until_killed", None)
    (model / "model.safetensors").write_bytes(b"other weights")
    run(tmp_path / "out.parquet", config)
    assert FakeEngine.batches == 3 + 8


def test_the_number_of_engines_changes_no_key(tmp_path):
    asked = list(synthesizer.requests(SEEDS, CONFIG, 3))
    keys = synthesizer.write_batches(asked, CONFIG, 3, tmp_path)
    more = CONFIG.model_copy(update={"engines": 4, "kv_cache_gib": 2})
    assert keys == synthesizer.write_batches(asked, more, 3, tmp_path) and len(set(keys)) == 8


def test_nothing_to_grow_makes_an_empty_file(tmp_path):
    assert run(tmp_path / "out.parquet", seeds=[]) == ({}, 0)
    assert read_records(tmp_path / "out.parquet") == []

"""Synthesis and training on a real cluster, each by the function its job calls."""

import threading

import numpy as np
import psutil
import pytest
import torch

from actors.synthesizer import synthesize, totals
from guardrail import training
from guardrail.guard import Guard
from guardrail.records import make_record, read_records, write_records
from guardrail.synthesis import SynthesisConfig
from guardrail.training import TrainingConfig, fine_tune
from guardrail.training_progress import TrainingError
from tests.tiny_guard import tiny_guard
from tests.tiny_llama import tiny_llama
from tests.tiny_loop import title
from tests.waiting import until


def seeds(count=24):
    unsafe = [f"How do I steal item {i} from a shop without being seen?" for i in range(count)]
    benign = [f"How do I bake bread of kind {i} at home on Sunday?" for i in range(count)]
    return [
        *(make_record(t, unsafe=True, source="theft", categories=["illicit"], licence="MIT") for t in unsafe),
        *(make_record(t, unsafe=False, source="bread", categories=[], licence="MIT") for t in benign),
    ]


def test_synthesis_keeps_label_and_lineage(ray_cluster, tmp_path):
    model = str(tiny_llama(tmp_path / "llama"))
    config = SynthesisConfig(
        model=model,
        strategies={"paraphrase": 1, "context": 1},
        max_seeds=8,
        max_prompt_tokens=700,
        max_new_tokens=64,
        temperature=1.0,
        batch_size=4,
    )
    long = make_record("Where is the shop? " * 200, unsafe=False, source="long", categories=[])
    fates, tokens = synthesize([*seeds(), long], config, tmp_path / "a.parquet", seed=3, num_cpus=0.5, num_gpus=0)
    records = read_records(tmp_path / "a.parquet")
    kept, dropped = totals(fates)
    assert kept == len(records) and kept + sum(dropped.values()) == 2 * 8 and dropped["prompt too long"] == 2
    assert tokens > 0
    known = {seed["id"]: seed for seed in seeds()}
    for record in records:
        parent = known[record["parent_id"]]
        assert record["unsafe"] == parent["unsafe"] and record["categories"] == parent["categories"]
        assert record["method"] in ("paraphrase", "context") and record["licence"] == "MIT"
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.long
def test_the_same_seed_writes_the_same_records(ray_cluster, tmp_path):
    config = SynthesisConfig(
        model=str(tiny_llama(tmp_path / "llama")),
        strategies={"paraphrase": 1, "context": 1},  # whose prompts fit, of which each character is a token
        max_seeds=8,
        max_prompt_tokens=700,
        max_new_tokens=64,
        temperature=1.0,
    )
    for name in "ab":
        synthesize(seeds(), config, tmp_path / f"{name}.parquet", seed=3, num_cpus=0.5, num_gpus=0)
    first, second = (read_records(tmp_path / f"{name}.parquet") for name in "ab")
    assert first and first == second


@pytest.mark.parametrize("workers", [2, pytest.param(1, marks=pytest.mark.long)])
def test_a_guard_learns_on_any_number_of_workers(ray_cluster, tmp_path, workers):
    records = seeds()
    write_records(records[::2], tmp_path / "data.parquet")
    alike = {"patience": 2, "average": 0.5, "minutes": 60}  # what the workers have to agree on
    config = TrainingConfig(workers=workers, epochs=2, learning_rate=1e-3, tokens_per_batch=256, **alike)
    card = fine_tune(
        config, data=tmp_path / "data.parquet", validation=records[1::2], output=tmp_path / "guard", version="v",
        seed=1, cpus_per_worker=0.5,
    )  # fmt: skip
    verdicts = Guard.from_pretrained(tmp_path / "guard").classify([record["text"] for record in records[1::2]])
    assert [v.unsafe for v in verdicts] == [record["unsafe"] for record in records[1::2]]
    assert card.training["records"] == 24 and card.temperature > 0 and 0 < card.thresholds["unsafe"] < 1
    assert not list(tmp_path.glob(".guard*"))  # no half-finished work stays behind


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_worker_that_is_killed_goes_on_at_its_step(ray_cluster, tmp_path, monkeypatch, workers):
    """Killed after a kept step in the midst of an epoch; the guard is the one of a training that nothing disturbed."""
    records = seeds()
    write_records(records, tmp_path / "data.parquet")
    monkeypatch.setattr(training, "_FEWEST_IN_BLOCK", 10)  # tokenised in several blocks, and in one without workers
    config = TrainingConfig(
        base=str(tiny_guard(tmp_path / "base")),
        window=48,
        epochs=40 if workers == 1 else 8,  # which exchange gradients of nearly nothing at every step
        tokens_per_batch=128,
        checkpoint_every=3,
        augment=0.5,
    )

    def train(name, workers):
        return fine_tune(
            config.model_copy(update={"workers": workers}), data=tmp_path / "data.parquet", validation=records,
            output=tmp_path / name, version=name, seed=1, cpus_per_worker=0.5,
        )  # fmt: skip

    whole = train("whole", workers=0 if workers == 1 else workers)  # one that is alone sums like none
    state, kept = tmp_path / ".killed.training" / "state.pt", []

    def kill() -> None:
        until(state.exists, "a step is kept")
        for child in psutil.Process().children(recursive=True):
            if "RayTrainWorker" in title(child):
                kept.append(torch.load(state)["progress"])
                child.kill()
                return

    killer = threading.Thread(target=kill)
    killer.start()
    card = train("killed", workers=workers)
    killer.join()
    assert len(kept) == 1 and kept[0]["step"] > 0 and kept[0]["metrics"].get("epochs", 0) < config.epochs
    assert card.digest == whole.digest and card.training["loss"] == whole.training["loss"]


@pytest.mark.long
def test_what_workers_fail_of_is_said(ray_cluster, tmp_path):
    records = seeds(8)
    write_records(records, tmp_path / "data.parquet")
    weights = tiny_guard(tmp_path / "base") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])  # which the driver does not read
    config = TrainingConfig(base=str(tmp_path / "base"), window=48, workers=1, max_failures=0)
    with pytest.raises(TrainingError, match=r"guard training failed \(.*deserializ.*\); its state is in"):
        fine_tune(
            config, data=tmp_path / "data.parquet", validation=records, output=tmp_path / "guard", version="v", seed=1,
            cpus_per_worker=0.5,
        )  # fmt: skip
    assert not (tmp_path / "guard").exists()


def test_a_decoder_is_a_base_too_and_an_earlier_guard_a_start(ray_cluster, tmp_path):
    records = seeds(8)
    write_records(records, tmp_path / "data.parquet")
    base = TrainingConfig(base=str(tiny_llama(tmp_path / "llama")), workers=0, epochs=1, retrain_epochs=1, window=64)

    def train(name, start=None):
        return fine_tune(
            base, data=tmp_path / "data.parquet", validation=records, output=tmp_path / name, version=name, seed=1,
            start=start,
        )  # fmt: skip

    first, second = train("first"), train("second", tmp_path / "first")
    assert second.training["start"] == first.digest != second.digest
    weights = [Guard.from_pretrained(tmp_path / name).model.score.weight for name in ("first", "second")]
    assert not torch.equal(*weights) and np.isfinite(weights[1].detach().numpy()).all()

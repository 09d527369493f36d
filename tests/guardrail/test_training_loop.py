"""The steps of a training: the same on any number of workers, and after a stop; each option trains a guard."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.multiprocessing
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.parallel import DistributedDataParallel

from guardrail import training_loop
from guardrail.bases import load_base
from guardrail.examples import examples_of, tokenised
from guardrail.guard import Guard
from guardrail.records import make_record, write_records
from guardrail.taxonomy import LABELS
from guardrail.training import fine_tune
from guardrail.training_config import TrainingConfig
from guardrail.training_loop import step_gradients
from guardrail.training_progress import TrainingError
from tests.tiny_guard import tiny_guard
from tests.tiny_llama import tiny_llama

WINDOW = 48


def seeds(count=16):
    """Records of uneven length; the categories of some are unknown."""
    unsafe = [("steal " * (1 + i % 5) + str(i), ["illicit"] if i % 3 else None) for i in range(count)]
    benign = ["bake bread " * (1 + i % 3) + str(i) for i in range(count - 4)]
    return [
        *(make_record(t, unsafe=True, source="theft", categories=keys, scores={"t": 0.9}) for t, keys in unsafe),
        *(make_record(t, unsafe=False, source="bread", categories=[]) for t in benign),
    ]


# --- Any number of workers ------------------------------------------------------------------------------------------


def gradients(base: str, config: TrainingConfig, batch: list[int], rank: int, world: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)  # the same new head everywhere
    model, tokenizer = load_base(base)
    model.eval().double()  # without dropout, and with little rounding, which these models amplify
    data = examples_of(tokenised(seeds(), tokenizer, config, 0), config)
    ddp = DistributedDataParallel(model, broadcast_buffers=False) if world > 1 else model
    loss = step_gradients(ddp, data, batch, tokenizer, config, rank, world)
    if world > 1:
        torch.distributed.all_reduce(loss)
    return {"loss": loss, **{name: p.grad for name, p in model.named_parameters()}}


def one_of_two(rank: int, directory: str, cases: list[tuple[str, TrainingConfig, list[int]]]) -> None:
    """Compute gradients of each case with another process, and have the first of the two write them."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{directory}/meet", rank=rank, world_size=2)
    found = [gradients(*case, rank, 2) for case in cases]
    if rank == 0:
        torch.save(found, f"{directory}/gradients.pt")
    assert training_loop._of_first(10.0 + rank, 2, torch.device("cpu")) == 10.0  # or one would stop before the other
    torch.distributed.destroy_process_group()


def test_two_workers_and_several_passes_give_the_gradients_of_one_worker(tmp_path):
    bases = [str(tiny_guard(tmp_path / "encoder")), str(tiny_llama(tmp_path / "decoder"))]
    plain = TrainingConfig(window=WINDOW, mixed_precision=False)
    whole = plain.model_copy(update={"label_smoothing": 0.1, "balance": 0.5, "adversarial": 0.05, "teachers": ("t",)})
    uneven = [0, 16, 3, 6, 20, 1, 2]  # the workers' rows differ in number, and in how many categories are known
    cases = [(base, config, batch) for base in bases for config in (plain, whole) for batch in (uneven, [4])]
    cases += [(base, whole.model_copy(update={"accumulate": 3}), uneven) for base in bases]
    torch.multiprocessing.spawn(one_of_two, (str(tmp_path), cases), nprocs=2)
    for (base, config, batch), two in zip(cases, torch.load(tmp_path / "gradients.pt"), strict=True):
        one = gradients(base, config.model_copy(update={"accumulate": 1}), batch, 0, 1)
        assert one.keys() == two.keys() and max(each.abs().max() for each in one.values()) > 1e-2
        # Some gradients are 0 but for it, and plain attention takes its softmax in float32.
        rounding = 5e-6 * max(float(each.abs().max()) for each in one.values())
        for name, expected in one.items():
            torch.testing.assert_close(two[name], expected, rtol=1e-4, atol=rounding, msg=lambda m, n=name: f"{n}: {m}")


def test_an_adversarial_pass_adds_to_the_gradients(tmp_path):
    base = str(tiny_guard(tmp_path / "guard"))
    plain, adversarial = (
        gradients(base, TrainingConfig(window=WINDOW, mixed_precision=False, adversarial=epsilon), [0, 1, 16], 0, 1)
        for epsilon in (0.0, 1e-6)
    )
    # A step of no length is the same text again.
    torch.testing.assert_close(adversarial["classifier.weight"], 2 * plain["classifier.weight"], rtol=1e-3, atol=1e-5)
    assert adversarial["loss"] == plain["loss"]


# --- Stopped and gone on --------------------------------------------------------------------------------------------


class Stopped(Exception):
    """A worker's death."""


def trained(tmp_path, monkeypatch, name, config, stop_at=None, board=None):
    """Train on the seeds and return the batches that were seen; die before the `stop_at`th of them, if given."""
    seen = []

    def watched_step(model, data, batch, *arguments):
        if len(seen) == stop_at:
            raise Stopped
        seen.append(list(batch))
        return step_gradients(model, data, batch, *arguments)

    write_records(seeds(), tmp_path / "data.parquet")
    arguments = {"data": tmp_path / "data.parquet", "validation": seeds(8), "version": "v", "seed": 1, "board": board}
    monkeypatch.setattr(training_loop, "step_gradients", watched_step)
    monkeypatch.setattr(
        training_loop.os, "cpu_count", lambda: 1
    )  # threads wait for each other longer than they compute
    if stop_at is None:
        return fine_tune(config, output=tmp_path / name, **arguments), seen
    with pytest.raises(Stopped):
        fine_tune(config, output=tmp_path / name, **arguments)
    return None, seen


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(tiny_guard(tmp_path_factory.mktemp("base") / "guard", layers=2))


def tiny_config(base, **options):
    values = {"epochs": 2, "learning_rate": 5e-3, "tokens_per_batch": 128, "workers": 0, "window": WINDOW}
    values["category_weight"] = 2 / 19  # a head of random opinions on 19 categories would drown "unsafe"
    return TrainingConfig(base=base, **(values | options))


def test_the_learning_rate_rises_and_falls_in_lines():
    rates = [training_loop.learning_rate(share) for share in (0, 0.05, 0.1, 0.55, 1, 1.1)]
    assert rates == pytest.approx([0, 0.5, 1, 0.5, 0, 0])


def test_a_training_of_so_many_minutes_ends_by_then_stopped_or_not(tmp_path, monkeypatch, base):
    monkeypatch.setattr(training_loop, "time", SimpleNamespace(monotonic=itertools.count().__next__))  # 1 s a step
    rates, step = [], torch.optim.AdamW.step

    def noted(optimizer, *arguments):
        assert optimizer.defaults["fused"]
        rates.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    config = tiny_config(base, minutes=9 / 60, checkpoint_every=2)
    whole, seen = trained(tmp_path, monkeypatch, "whole", config)
    epoch = len(trained(tmp_path, monkeypatch, "epoch", tiny_config(base, epochs=1))[1])
    assert len(seen) == 9 < 2 * epoch and whole.training["epochs"] == pytest.approx(9 / epoch)
    assert whole.training["out_of_time"]
    assert rates[:9] == pytest.approx(
        [5e-3 * training_loop.learning_rate(done / 9 + 0.25 / epoch) for done in range(9)]
    )
    trained(tmp_path, monkeypatch, "stopped", config, stop_at=7)
    again, after = trained(tmp_path, monkeypatch, "stopped", config)
    assert after == seen[6:] and again.digest == whole.digest and again.training == whole.training
    ample, seen = trained(tmp_path, monkeypatch, "ample", tiny_config(base, minutes=60, epochs=1))
    assert len(seen) == epoch and ample.training["epochs"] == 1 and not ample.training["out_of_time"]
    assert ample.digest == Guard.from_pretrained(tmp_path / "epoch").card.digest  # a limit that is not met does nothing


@pytest.mark.parametrize(
    "options", [{}, {"average": 0.9, "patience": 2, "lora_rank": 2, "layer_decay": 0.9}], ids=["plain", "options"]
)
def test_a_training_that_was_stopped_goes_on_at_its_step_and_ends_as_another(tmp_path, monkeypatch, base, options):
    config = tiny_config(base, checkpoint_every=3, **options)
    whole, every = trained(tmp_path, monkeypatch, "whole", config)
    epoch = len(every) // 2
    kept = next(step for step in range(epoch + 1, 2 * epoch) if step % 3 == 0)
    assert kept + 1 < 2 * epoch
    _, before = trained(tmp_path, monkeypatch, "stopped", config, stop_at=kept + 1)
    again, after = trained(tmp_path, monkeypatch, "stopped", config)
    assert before == every[: kept + 1]
    assert after == every[kept:]  # the one step whose result was lost, and what was not seen yet
    assert again.digest == whole.digest
    assert again.training == whole.training
    assert not list(tmp_path.glob(".stopped*"))


def test_the_same_training_is_not_run_twice(tmp_path, monkeypatch, base, caplog):
    config = tiny_config(base, epochs=1)
    first, every = trained(tmp_path, monkeypatch, "guard", config)
    again, seen = trained(tmp_path, monkeypatch, "guard", config)
    assert seen == [] and again.digest == first.digest and "is not trained again" in caplog.text
    (tmp_path / "guard" / "model.safetensors").write_bytes(b"damaged")
    again, seen = trained(tmp_path, monkeypatch, "guard", config)
    assert seen == every and again.digest == first.digest
    assert len(trained(tmp_path, monkeypatch, "guard", tiny_config(base, epochs=2))[1]) == 2 * len(every)


@pytest.mark.parametrize("options", [{"checkpoint_every": 1}, {"patience": 1}], ids=str)
def test_a_training_that_diverges_ends_and_leaves_no_state_that_has(tmp_path, monkeypatch, base, options):
    with pytest.raises(TrainingError, match="lower learning rate"):
        trained(tmp_path, monkeypatch, "guard", tiny_config(base, learning_rate=1e30, **options))
    states = [torch.load(path) for path in tmp_path.glob(".guard.training/state.pt")]
    assert len(states) == ("checkpoint_every" in options)
    assert all(tensor.isfinite().all() for state in states for tensor in state["model"].values())
    assert trained(tmp_path, monkeypatch, "guard", tiny_config(base, epochs=1))[0].training["loss"] < 5


def test_a_last_step_that_spoils_the_weights_makes_no_guard(tmp_path, monkeypatch, base):
    clip = torch.nn.utils.clip_grad_norm_

    def spoilt(parameters, *arguments):
        parameters = list(parameters)
        parameters[-1].grad.fill_(torch.inf)  # the loss was a number
        return clip(parameters, *arguments)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spoilt)
    with pytest.raises(TrainingError, match="lower learning rate"):
        trained(tmp_path, monkeypatch, "guard", tiny_config(base, epochs=1, tokens_per_batch=10_000))


def test_dropout_of_a_step_hangs_on_nothing_before_it(tmp_path, monkeypatch, base):
    first = trained(tmp_path, monkeypatch, "a", tiny_config(base, epochs=1))[0].digest
    torch.rand(7)
    assert trained(tmp_path, monkeypatch, "b", tiny_config(base, epochs=1))[0].digest == first


def test_a_training_whose_time_is_limited_is_kept_by_the_clock_as_well(tmp_path, monkeypatch, base):
    monkeypatch.setattr(training_loop, "time", SimpleNamespace(monotonic=itertools.count(0, 100).__next__))  # s a step
    config = tiny_config(base, minutes=60)
    _, seen = trained(tmp_path, monkeypatch, "guard", config, stop_at=4)
    assert trained(tmp_path, monkeypatch, "guard", config)[1][: len(seen) - 3] == seen[3:]


def test_where_there_are_units_for_it_a_step_computes_in_bfloat16(monkeypatch, base):
    config = TrainingConfig(window=WINDOW)
    model, tokenizer = load_base(str(base))
    data = examples_of(tokenised(seeds(), tokenizer, config, 0), config)
    computed = []
    model.classifier.register_forward_hook(lambda _, __, output: computed.append(output.dtype))
    for has_units in (True, False):
        monkeypatch.setattr(training_loop, "computes_bfloat16", lambda _, has=has_units: has)
        assert step_gradients(model.train(), data, [0, 1], tokenizer, config).isfinite()
    step_gradients(model.train(), data, [0, 1], tokenizer, config.model_copy(update={"mixed_precision": False}))
    assert computed == [torch.bfloat16, torch.float32, torch.float32]


def test_the_curves_of_a_training_are_whole_after_a_stop(tmp_path, monkeypatch, base):
    monkeypatch.setattr(training_loop, "_TOLD_EVERY", 1)
    config = tiny_config(base, patience=2, checkpoint_every=2)
    board = tmp_path / "board"
    _, before = trained(tmp_path, monkeypatch, "guard", config, stop_at=7, board=board)
    _, after = trained(tmp_path, monkeypatch, "guard", config, board=board)
    steps = list(range(1, len(before[:6]) + len(after) + 1))
    curves = EventAccumulator(str(board)).Reload()
    assert [each.step for each in curves.Scalars("guard/loss")] == steps
    rates = [each.value for each in curves.Scalars("guard/learning_rate")]
    peak = config.learning_rate
    assert rates == pytest.approx([peak * training_loop.learning_rate((step - 0.5) / len(steps)) for step in steps])
    assert [each.step for each in curves.Scalars("guard/validation_auprc")] == [len(steps) // 2, len(steps)]


def test_a_step_on_a_cpu_draws_no_doubles_for_its_dropout(base):
    config = TrainingConfig(window=WINDOW)
    model, tokenizer = load_base(str(base))
    data = examples_of(tokenised(seeds(), tokenizer, config, 0), config)
    with torch.profiler.profile() as profile:
        step_gradients(model.train(), data, [0, 1], tokenizer, config)
    drawn = {event.key for event in profile.key_averages()}
    assert "aten::random_" in drawn and "aten::bernoulli_" not in drawn


# --- Options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"label_smoothing": 0.1},
        {"layer_decay": 0.8},
        {"average": 0.5},
        {"adversarial": 0.05},
        {"balance": 0.5},
        {"teachers": ("t",)},
        {"accumulate": 2},
        {"lora_rank": 4},
        {"freeze_layers": 1},
        {"freeze_layers": 2, "adversarial": 0.05},
        {"freeze_embeddings": False, "adversarial": 0.05, "average": 0.5, "lora_rank": 4, "augment": 0.2},
    ],
    ids=str,
)
def test_each_option_changes_the_guard_which_stays_a_plain_model(tmp_path, monkeypatch, base, plain_guard, options):
    card, _ = trained(tmp_path, monkeypatch, "guard", tiny_config(base, **options))
    assert card.training["loss"] < 5
    if set(options) != {"accumulate"}:
        assert card.digest != plain_guard.digest
    names = set(load_base(base)[0].state_dict())
    assert set(Guard.from_pretrained(tmp_path / "guard").model.state_dict()) == names


def test_a_share_of_the_weights_before_training_is_kept(tmp_path, monkeypatch, base):
    for name, share in (("whole", 0.0), ("mixed", 0.2)):
        trained(tmp_path, monkeypatch, name, tiny_config(base, start_share=share))
    names = ("bert.encoder.layer.0.output.dense.weight", "bert.pooler.dense.weight", "classifier.weight")
    whole, mixed = (load_base(str(tmp_path / name))[0].state_dict() for name in ("whole", "mixed"))
    before = load_base(base)[0].state_dict()
    for name in names:  # the base is a guard: it has a head
        assert not torch.equal(whole[name], before[name])
        torch.testing.assert_close(mixed[name], 0.8 * whole[name] + 0.2 * before[name])


@pytest.fixture(scope="module")
def plain_guard(tmp_path_factory, base):
    with pytest.MonkeyPatch.context() as patch:
        return trained(tmp_path_factory.mktemp("plain"), patch, "guard", tiny_config(base))[0]


def test_training_stops_when_the_validation_split_is_ranked_no_better(tmp_path, monkeypatch, base):
    ranked = iter([0.5, 0.8, 0.7, 0.8, 0.9])
    weights = []

    def auprc(model, *_):
        weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return next(ranked)

    monkeypatch.setattr(training_loop, "_validation_auprc", auprc)
    card, _ = trained(tmp_path, monkeypatch, "guard", tiny_config(base, epochs=5, patience=2))
    assert len(weights) == 4 and card.training["epochs"] == 2 and not card.training["out_of_time"]  # of those it has
    kept = Guard.from_pretrained(tmp_path / "guard").model.state_dict()
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in kept.items())
    assert not torch.equal(kept["classifier.weight"], weights[3]["classifier.weight"])


def test_the_validation_split_is_ranked_as_the_guard_ranks_it(tmp_path):
    directory = tiny_guard(tmp_path / "guard")
    guard = Guard.from_pretrained(directory)
    texts = ["bread", "knife", "steal " * 30, "bake bread"]
    scores = guard.logits(texts)[:, 0]
    validation = [(text, None, bool(score >= np.median(scores))) for text, score in zip(texts, scores, strict=True)]
    model, tokenizer = load_base(str(directory))
    assert training_loop._validation_auprc(model.train(), tokenizer, validation, guard.card.window) == 1.0


def test_categories_are_learned_beside_unsafe(tmp_path, monkeypatch):
    words = {"violence": "maim", "hate": "loathe", "illicit": "purloin"}
    records = [
        make_record(f"{'so ' * (i % 4)}{word} {i}", unsafe=True, source="s", categories=[key])
        for key, word in words.items()
        for i in range(24)
    ]
    records += [make_record(f"{'so ' * (i % 4)}bake {i}", unsafe=False, source="s", categories=[]) for i in range(72)]
    write_records(records, tmp_path / "data.parquet")
    monkeypatch.setattr(training_loop.os, "cpu_count", lambda: 1)
    fine_tune(
        TrainingConfig(workers=0, window=WINDOW, epochs=3, tokens_per_batch=128),
        **{"data": tmp_path / "data.parquet", "validation": records, "version": "v", "seed": 1},
        output=tmp_path / "guard",
    )
    scores = Guard.from_pretrained(tmp_path / "guard").probabilities([record["text"] for record in records])
    for label in ("unsafe", *words):
        has = [record["unsafe"] if label == "unsafe" else label in record["categories"] for record in records]
        assert scores[np.array(has), LABELS.index(label)].mean() > 0.3  # 0.2 where categories count as a mean over 19


def test_teachers_that_no_record_has_are_refused_before_anything_is_trained(tmp_path, monkeypatch, base):
    with pytest.raises(ValueError, match="names 'judge:none'"):
        trained(tmp_path, monkeypatch, "guard", tiny_config(base, teachers=("judge:none",)))

import pytest
import torch

from guardrail import optimisation
from guardrail.bases import load_base
from guardrail.optimisation import (
    choose_trainable,
    computes_bfloat16,
    interpolated,
    parameter_groups,
    plain_weights,
    train_mode,
    weight_average,
)
from guardrail.training_config import TrainingConfig
from tests.tiny_guard import tiny_guard, tiny_mpnet_guard
from tests.tiny_llama import tiny_llama


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny_guard(tmp_path_factory.mktemp("base") / "encoder", layers=2)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("base") / "decoder")


@pytest.fixture(scope="module")
def mpnet(tmp_path_factory):
    return tiny_mpnet_guard(tmp_path_factory.mktemp("base") / "mpnet")


def rates(model, decay):
    by_id = {id(p): group["lr"] for group in parameter_groups(model, 1.0, decay) for p in group["params"]}
    return {name: by_id[id(p)] for name, p in model.named_parameters() if id(p) in by_id}


def test_without_decay_all_that_is_trained_has_one_rate(encoder):
    model, _ = load_base(str(encoder))
    choose_trainable(model, TrainingConfig())
    (group,) = parameter_groups(model, 3e-4, 1.0)
    assert group["lr"] == 3e-4
    frozen = model.get_input_embeddings().weight
    assert {id(p) for p in group["params"]} == {id(p) for p in model.parameters()} - {id(frozen)}


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("encoder", {"embeddings": 0.125, "layer.0.": 0.25, "layer.1.": 0.5, "pooler": 1.0, "classifier": 1.0}),
        ("decoder", {"embed_tokens": 0.125, "layers.0.": 0.25, "layers.1.": 0.5, "model.norm": 1.0, "score": 1.0}),
    ],
)
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_each_layer_learns_more_slowly_than_the_one_above(base, expected, lora_rank, request):
    model, _ = load_base(str(request.getfixturevalue(base)))
    choose_trainable(model, TrainingConfig(freeze_embeddings=False, lora_rank=lora_rank))
    found = rates(model, 0.5)
    assert found
    for name, rate in found.items():
        (wanted,) = [rate for part, rate in expected.items() if part in name]
        assert rate == wanted, name
    if not lora_rank:
        assert len(found) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("encoder", ("layer.1.", "pooler", "classifier")),
        ("decoder", ("layers.1.", "model.norm", "score")),
        ("mpnet", ("layer.1.", "classifier")),
    ],
)
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_no_gradient_is_computed_down_to_frozen_layers(base, expected, lora_rank, request):
    model, tokenizer = load_base(str(request.getfixturevalue(base)))
    choose_trainable(model, TrainingConfig(freeze_layers=1, lora_rank=lora_rank))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    expected = tuple(part for part in expected if not (lora_rank and part == "model.norm"))  # it has no adapter
    assert {part for part in expected if any(part in name for name in trained)} == set(expected)
    assert all(any(part in name for part in expected) for name in trained)
    with pytest.raises(ValueError, match="freeze_layers is 3, and .* has 2 layers"):
        choose_trainable(model, TrainingConfig(freeze_layers=3))
    (layers,) = [part for part in model.modules() if isinstance(part, torch.nn.ModuleList)]
    states = []
    layers[0].register_forward_hook(lambda module, inputs, output: states.append(output))
    model(**tokenizer(["how to bake bread"], return_tensors="pt")).logits.sum().backward()
    lower = states[0][0] if isinstance(states[0], tuple) else states[0]
    assert not lower.requires_grad


@pytest.mark.parametrize("base", ["encoder", "mpnet"])
def test_only_what_learns_has_dropout(base, request):
    model, tokenizer = load_base(str(request.getfixturevalue(base)))
    choose_trainable(model, TrainingConfig(freeze_layers=1))
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.5
    train_mode(model.eval())
    inputs = tokenizer(["how to bake bread"], return_tensors="pt")
    first, second = (model(**inputs, output_hidden_states=True).hidden_states for _ in range(2))
    assert [torch.equal(a, b) for a, b in zip(first, second, strict=True)] == [True, True, False]


@pytest.mark.parametrize("base", ["encoder", "decoder"])
def test_adapters_start_as_the_base_are_few_and_merge_into_plain_weights(base, request, tmp_path):
    directory = str(request.getfixturevalue(base))
    torch.manual_seed(0)
    model, tokenizer = load_base(directory)
    model.eval()
    inputs = tokenizer(["how to bake bread", "knife"], padding=True, return_tensors="pt")
    names = set(model.state_dict())
    with torch.no_grad():
        before = model(**inputs).logits
        choose_trainable(model, TrainingConfig(lora_rank=2))
        assert torch.equal(model(**inputs).logits, before)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        assert trained and all("lora_" in n or n.startswith(("classifier", "score")) for n in trained)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
        adapted = model(**inputs).logits
        assert not torch.allclose(adapted, before, atol=1e-3)
        weights = plain_weights(model)
    assert set(weights) == names
    model.save_pretrained(tmp_path, state_dict=weights)
    merged, _ = load_base_from(tmp_path, tokenizer)
    with torch.no_grad():
        torch.testing.assert_close(merged.eval()(**inputs).logits, adapted, rtol=1e-4, atol=1e-4)


def load_base_from(directory, tokenizer):
    tokenizer.save_pretrained(directory)
    return load_base(str(directory))


def test_the_average_follows_the_weights():
    model = torch.nn.Linear(1, 1, bias=False)
    average = weight_average(model, 0.75)
    for value in (2.0, 6.0):  # the first is taken as it is
        torch.nn.init.constant_(model.weight, value)
        average.update_parameters(model)
    assert average.module.weight.item() == pytest.approx(0.75 * 2.0 + 0.25 * 6.0)
    assert model.weight.item() == 6.0


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_f": True, "avx512_bf16": False}, False),
        ({"avx512_f": True, "avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"neon": True}, False),
    ],
)
def test_a_cpu_computes_in_bfloat16_where_it_has_units(capabilities, expected, monkeypatch):
    monkeypatch.setattr(optimisation.torch.cpu, "get_capabilities", lambda: capabilities)
    assert computes_bfloat16(torch.device("cpu")) is expected
    assert not computes_bfloat16(torch.device("meta"))


@pytest.mark.parametrize("kind", ["encoder", "decoder", "mpnet"])
def test_of_weights_that_are_mixed_with_those_before_a_new_head_is_left_alone(kind, request):
    base = str(request.getfixturevalue(kind))
    start, model = load_base(base)[0], load_base(base)[0]
    choose_trainable(model, TrainingConfig(lora_rank=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(parameter.requires_grad * 0.5)
    weights = plain_weights(model)
    mixed = interpolated(weights, start, 0.25, new_head=True)
    assert mixed.keys() == weights.keys() == start.state_dict().keys()
    for name, before in start.state_dict().items():
        new = name.startswith(("classifier.", "score."))
        torch.testing.assert_close(mixed[name], weights[name] if new else 0.75 * weights[name] + 0.25 * before)
    whole = interpolated(weights, start, 0.25, new_head=False)  # a head that was there before is mixed, too
    for name, before in start.state_dict().items():
        torch.testing.assert_close(whole[name], 0.75 * weights[name] + 0.25 * before)

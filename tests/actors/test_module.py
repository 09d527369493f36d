"""The policy module on a real two-layer Llama: what it computes, what it saves, what it refuses."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from actors.module import CausalLMModule
from tests.tiny_llama import tiny_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_llama(tmp_path_factory.mktemp("llama")))


def build(model, layers=1, temperature=0.8, rank=0):
    space = gym.spaces.Discrete(2)
    config = {"model": model, "trainable_layers": layers, "temperature": temperature, "lora_rank": rank}
    spec = RLModuleSpec(module_class=CausalLMModule, observation_space=space, action_space=space, model_config=config)
    return spec.build()


#: A group of three completions after one prompt, and a shorter group of one that is padded.
GROUPS = [([10, 20, 30], [[40, 50], [41], [42, 52, 62]]), ([11, 21], [[31, 32]])]


def rows():
    width = max(len(prompt) + sum(map(len, completions)) for prompt, completions in GROUPS)
    ids, segments = torch.zeros(2, width, dtype=torch.long), torch.full((2, width), -1)
    for row, (prompt, completions) in enumerate(GROUPS):
        parts = [prompt, *completions]
        flat = [(token, number) for number, part in enumerate(parts) for token in part]
        ids[row, : len(flat)] = torch.tensor([token for token, _ in flat])
        segments[row, : len(flat)] = torch.tensor([number for _, number in flat])
    return ids, segments


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_logprobs_are_those_of_each_completion_alone(model, layers):
    ids, segments = rows()
    ours = build(model, layers).logprobs(ids, segments, temperature=0.8)
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for row, (prompt, completions) in enumerate(GROUPS):
        for number, completion in enumerate(completions, 1):
            with torch.no_grad():
                logits = plain(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
            expected = torch.log_softmax(logits / 0.8, -1).gather(-1, torch.tensor(completion)[:, None]).squeeze(-1)
            of_completion = segments[row] == number
            for name in ("logprobs", "reference_logprobs"):  # untrained, policy and reference agree
                assert torch.allclose(ours[name][row][of_completion], expected, atol=1e-5)
    assert not ours["logprobs"][segments <= 0].any()


def test_only_the_policy_learns_and_its_state_travels(model):
    module, other = build(model), build(model)
    ids, segments = rows()
    before = module.logprobs(ids, segments, 1.0)
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.5)
    (-before["logprobs"].sum()).backward()
    optimizer.step()
    after = module.logprobs(ids, segments, 1.0)
    assert after["logprobs"].sum() > before["logprobs"].sum()
    assert torch.equal(after["reference_logprobs"], before["reference_logprobs"])
    assert module.distance_from_reference() > 0 and other.distance_from_reference() == 0
    state = module.get_state()
    assert all(name.startswith(("model.layers.1.", "model.norm.")) for name in state)
    assert all(isinstance(array, np.ndarray) for array in state.values())
    other.set_state(state)
    assert torch.equal(other.logprobs(ids, segments, 1.0)["logprobs"], after["logprobs"])


def test_a_state_of_another_shape_is_refused(model):
    with pytest.raises(ValueError, match="trained layers"):
        build(model, 1).set_state(build(model, 2).get_state())


def test_a_model_that_is_not_built_as_llama_is_refused_by_name(tmp_path):
    GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a GPT2LMHeadModel is not built as Llama is"):
        build(str(tmp_path))


def test_adapters_learn_alone_and_reach_engines_merged(model):
    module = build(model, rank=2)
    ids, segments = rows()
    before = module.logprobs(ids, segments, 1.0)["logprobs"].detach()
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    assert all(min(parameter.shape) == 2 for parameter in trained)
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    after = module.logprobs(ids, segments, 1.0)
    assert not torch.allclose(after["logprobs"], before) and module.distance_from_reference() > 0
    assert torch.allclose(after["reference_logprobs"].detach(), before, atol=1e-5)
    plain = build(model)
    plain.set_state(module.get_state(inference_only=True))
    assert torch.allclose(plain.logprobs(ids, segments, 1.0)["logprobs"], after["logprobs"], atol=1e-5)
    other = build(model, rank=2)
    other.set_state(module.get_state())
    assert torch.allclose(other.logprobs(ids, segments, 1.0)["logprobs"], after["logprobs"], atol=1e-5)

"""The policy module on a real two-layer Llama: what it computes, what it saves, what it refuses."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from transformers import AutoModelForCausalLM

from actors.module import CausalLMModule
from tests.tiny_llama import tiny_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_llama(tmp_path_factory.mktemp("llama")))


def build(model, layers=1, temperature=0.8):
    space = gym.spaces.Discrete(2)
    config = {"model": model, "trainable_layers": layers, "temperature": temperature}
    spec = RLModuleSpec(module_class=CausalLMModule, observation_space=space, action_space=space, model_config=config)
    return spec.build()


def rows():
    """Two sequences, the second one padded."""
    ids = torch.tensor([[10, 20, 30, 40, 50], [11, 21, 31, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    wanted = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]]).bool()
    return ids, mask, wanted


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_logprobs_are_those_of_transformers(model, layers):
    ids, mask, wanted = rows()
    ours = build(model, layers).logprobs(ids, mask, wanted, temperature=0.8)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)(ids, attention_mask=mask).logits
    expected = torch.log_softmax(logits[:, :-1] / 0.8, -1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    expected = torch.cat([torch.zeros(2, 1), expected], dim=1) * wanted
    assert torch.allclose(ours["logprobs"], expected, atol=1e-5)
    assert torch.allclose(ours["reference_logprobs"], expected, atol=1e-5)  # untrained, policy and reference agree


def test_only_the_policy_learns_and_its_state_travels(model):
    module, other = build(model), build(model)
    ids, mask, wanted = rows()
    before = module.logprobs(ids, mask, wanted, 1.0)
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.5)
    (-before["logprobs"].sum()).backward()
    optimizer.step()
    after = module.logprobs(ids, mask, wanted, 1.0)
    assert after["logprobs"].sum() > before["logprobs"].sum()
    assert torch.equal(after["reference_logprobs"], before["reference_logprobs"])
    assert module.distance_from_reference() > 0 and other.distance_from_reference() == 0
    state = module.get_state()
    assert all(name.startswith(("model.layers.1.", "model.norm.")) for name in state)
    assert all(isinstance(array, np.ndarray) for array in state.values())
    other.set_state(state)
    assert torch.equal(other.logprobs(ids, mask, wanted, 1.0)["logprobs"], after["logprobs"])


def test_a_state_of_another_shape_is_refused(model):
    with pytest.raises(ValueError, match="trained layers"):
        build(model, 1).set_state(build(model, 2).get_state())

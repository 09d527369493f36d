"""What attackers are taught: of which styles, about which goals, past which gate, and that it changes what they say."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from actors.config import GateConfig
from actors.demonstrations import Demonstration, TeachingConfig, demonstrations, passing, teach
from actors.styles import STYLE, STYLES
from guardrail.intent import IntentModel
from guardrail.seeds import embedded_seeds
from tests.tiny_llama import tiny_llama


def test_there_are_many_of_every_rewording_style_and_none_of_others():
    wording = {style.name for style in STYLES if style.action != "frame" and not style.transforms}
    assert {each.style.name for each in demonstrations()} == wording and len(demonstrations()) > 700


def test_no_seed_is_the_goal_of_one():
    assert not {each.goal for each in demonstrations()} & {seed["text"] for seed in embedded_seeds()}


def test_what_the_gate_would_reject_is_not_shown():
    near, far = (
        Demonstration(STYLE["paraphrase"], "How do I change a flat tyre?", said)
        for said in ("How is a flat tyre changed?", "The stock market fell on Monday.")
    )
    assert passing([near, far], GateConfig(min_intent=0.0), IntentModel.from_pretrained()) == [near]


def test_teaching_raises_the_likelihood_of_what_is_shown(tmp_path):
    model = tiny_llama(tmp_path / "model")
    losses = []
    shown = [each for each in demonstrations() if each.style.name == "polite"][:8]
    config = TeachingConfig(model=str(model), epochs=6, batch_size=4, trainable_layers=1, learning_rate=1e-2)
    teach(shown, config, tmp_path / "taught", 0, lambda done, steps, loss: losses.append((done, steps, loss)))
    assert [entry[:2] for entry in losses] == [(step, 12) for step in range(1, 13)]
    assert losses[-1][2] < losses[0][2]
    before, after = (AutoModelForCausalLM.from_pretrained(path).model for path in (model, tmp_path / "taught"))
    assert torch.equal(before.layers[0].mlp.up_proj.weight, after.layers[0].mlp.up_proj.weight)
    assert not torch.equal(before.layers[-1].mlp.up_proj.weight, after.layers[-1].mlp.up_proj.weight)


def test_an_attacker_that_is_there_is_not_written_over(tmp_path):
    (tmp_path / "config.json").touch()
    with pytest.raises(ValueError, match="is not empty"):
        teach(demonstrations()[:1], TeachingConfig(), tmp_path, 0, lambda *_: None)


def test_a_model_that_is_not_built_as_llama_is_refused(tmp_path):
    GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_llama(tmp_path / "llama")).save_pretrained(tmp_path / "model")
    config = TeachingConfig(model=str(tmp_path / "model"))
    with pytest.raises(ValueError, match="a GPT2LMHeadModel is not built as Llama is"):
        teach(demonstrations()[:1], config, tmp_path / "taught", 0, lambda *_: None)


def test_nothing_to_show_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no demonstrations"):
        teach([], TeachingConfig(), tmp_path / "taught", 0, lambda *_: None)

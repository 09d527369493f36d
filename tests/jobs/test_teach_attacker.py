"""The teaching of an attacker, as a command, on a tiny model."""

from transformers import AutoModelForCausalLM

from actors.demonstrations import demonstrations
from jobs import teach_attacker
from tests.tiny_llama import tiny_llama


def test_the_command_writes_an_attacker_and_says_what_it_was_shown(tmp_path, capsys, monkeypatch):
    few = demonstrations()[:60]
    monkeypatch.setattr(teach_attacker, "demonstrations", lambda: few)
    model = tiny_llama(tmp_path / "model")
    output = tmp_path / "attacker"
    teach_attacker.main(["--output", str(output), "--teaching.model", str(model), "--teaching.epochs", "1"])
    shown, *steps = capsys.readouterr().out.splitlines()
    assert shown.split()[0].isdigit() and "pass the gate" in shown and steps
    assert AutoModelForCausalLM.from_pretrained(output).config.num_hidden_layers == 2
    assert (output / "attacker.config.yaml").exists()

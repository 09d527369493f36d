"""What tests of backends and of the export share: a guard that was exported once."""

import json
from pathlib import Path

import pytest

from guardrail import export
from guardrail.guard import Guard
from guardrail.seeds import embedded_seeds
from tests.tiny_guard import tiny_guard


@pytest.fixture(scope="session")
def clear_cut_set(tmp_path_factory) -> Path:
    """An evaluation file on which the tiny guard's AUPRC is 1: what it scores highest is unsafe, lowest benign."""
    directory = tmp_path_factory.mktemp("labelled")
    guard = Guard.from_pretrained(tiny_guard(directory / "guard"))
    texts = sorted({seed["text"] for seed in embedded_seeds()[:200]})
    scores = guard.probabilities(texts)[:, 0]
    ranked = [texts[place] for place in scores.argsort()]
    file = directory / "clear-cut.jsonl"
    file.write_text(
        "".join(
            json.dumps({"id": str(place), "text": text, "response": None, "unsafe": place >= 20}) + "\n"
            for place, text in enumerate([*ranked[:20], *ranked[-20:]])
        )
    )
    return file


@pytest.fixture(scope="session")
def exported(tmp_path_factory, clear_cut_set) -> Path:
    """A tiny guard with both exported backends, not to be changed; the guard's window takes 48 tokens."""
    directory = tiny_guard(tmp_path_factory.mktemp("exported") / "guard")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_SEEDS", 32)
        assert export.main([str(directory), "--int8", "--data", str(clear_cut_set)]) == 0
    return directory

"""The guard directory as it is, in plain transformers and in vLLM's classification server: the same probabilities."""

from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from guardrail.guard import Guard
from guardrail.reading import Exchange
from tests.benchmarks.serve_speed import peers
from tests.tiny_bases import tiny_base
from tests.tiny_guard import tiny_decoder_guard, tiny_guard, tiny_guard_on, tiny_mpnet_guard

READ = [
    "How do I kill a Python process?",
    "Hello",
    "  A   tea? ",
    "an [UNK] that is none",
    Exchange("Name a tea.", "Oolong."),
]
TEXTS = [str(each) for each in READ]  # an exchange is its prompt, an empty line and its response
_HIDDEN = 64  # of two heads: vLLM on CPUs reads heads of 32 and up

# Each starts a server.
_LONG = [pytest.param(kind, marks=pytest.mark.long) for kind in ("encoder", "decoder", "modernbert", "qwen3")]


@pytest.mark.parametrize("kind", ["MPNet", *_LONG])
def test_plain_transformers_and_vllm_give_the_guards_probabilities(kind: str, tmp_path: Path) -> None:
    if kind == "encoder":
        directory = tiny_guard(tmp_path / "guard", hidden=_HIDDEN)
    elif kind == "MPNet":
        directory = tiny_mpnet_guard(tmp_path / "guard")
    elif kind == "decoder":
        directory = tiny_decoder_guard(tmp_path / "guard")
    else:  # of two layers, so that one of ModernBERT's reads what is near alone
        directory = tiny_guard_on(partial(tiny_base, kind, hidden=_HIDDEN), tmp_path / "guard", kind, 2)
    expected = 1 / (1 + np.exp(-Guard.from_pretrained(directory).logits(READ)))  # of temperature 1
    assert expected.std() > 0.1  # no model that says the same of all

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory)
    with torch.no_grad():
        plain = torch.sigmoid(model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits).numpy()
    assert np.abs(plain - expected).max() < 1e-3

    (vllm,) = [peer for peer in peers(directory, threads=1) if peer.name == "vLLM"]
    with vllm.running(tmp_path / "vllm.log") as url:
        body = {"model": "guard", "input": TEXTS}
        answers = httpx.post(url, json=body, timeout=60).raise_for_status().json()["data"]
        cut = httpx.post(url, json={"model": "guard", "input": ["tea " * 99], "truncate_prompt_tokens": -1}, timeout=60)
        assert cut.is_success  # of a text that is longer than the model can read, what it can
    assert np.abs(np.array([answer["probs"] for answer in answers]) - expected).max() < 1e-3
    labels = [model.config.id2label[row.argmax()] for row in expected]
    assert [answer["label"] for answer in answers] == labels

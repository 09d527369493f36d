"""A guard model behind vLLM's own server, asked by URL: both formats of completions, verdicts, and scores."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from guardrail.chat_guard import _ALTERNATIVES, _ChatAnswer, _TextAnswer
from guardrail.targets import open_guard, unsafe_scores
from tests.tiny_llama import tiny_llama_that_says
from tests.waiting import PATIENCE, free_port, until


@pytest.mark.long
def test_vllms_server_is_asked_and_its_tokens_are_read(tmp_path: Path) -> None:
    model = tiny_llama_that_says("unsafe", tmp_path / "model")
    port, log = free_port(), tmp_path / "vllm.log"
    server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--dtype", "float32"]
    server += ["--enforce-eager", "--max-model-len", "1024", "--host", "127.0.0.1", "--port", str(port)]
    environment = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with log.open("w") as file:
        process = subprocess.Popen(server, env=environment, stdout=file, stderr=subprocess.STDOUT)

    def answers() -> bool:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health").is_success
        except httpx.TransportError:
            return False

    try:
        until(answers, "vLLM answers")
        texts = [f"How do I bake bread number {number}?" for number in range(20)]
        chat = open_guard(f"llama-guard+http://127.0.0.1:{port}/v1/chat/completions")
        _, flagged = unsafe_scores(chat, texts)
        assert chat.name == str(model) and flagged.all()
        plain = open_guard(f"wildguard+http://127.0.0.1:{port}/v1/completions")
        scores, flagged = unsafe_scores(plain, texts)
        assert np.isnan(scores).all() and not flagged.any()  # "unsafe" is no verdict of that format
        for guard, kind in ((chat, _ChatAnswer), (plain, _TextAnswer)):
            said = guard.read(guard._ask(guard.format.questions[0], "Hello"), kind).choices[0].said()
            assert "".join(token for token, _ in said.alternatives).startswith(said.text)  # its end may be told, too
            assert all(len(others) >= _ALTERNATIVES for _, others in said.alternatives)
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE)

"""A real LiteLLM proxy asks the served guard about what goes to a model and what comes back.

LiteLLM does not go with what is locked here: `make test-litellm` installs it into a venv of its own, named in LITELLM.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai
import pytest
import yaml

from guardrail.guard import Guard
from tests.served_guard import served
from tests.tiny_guard import tiny_guard
from tests.waiting import free_port, until

LITELLM = os.environ.get("LITELLM")
pytestmark = pytest.mark.skipif(not LITELLM, reason="needs LiteLLM in a venv of its own: make test-litellm")

PROXY_KEY = "sk-" + "0123456789abcdef" * 4  # LiteLLM does not start without one
WORDS = "tea rum bread stone river engine winter letter garden copper".split()


class Texts(NamedTuple):
    """A guard, and what it says of texts: `late` passes but for its second half."""

    guard: Path
    passes: str
    blocked: str
    late: tuple[str, str]


class Model(ThreadingHTTPServer):
    """A model with OpenAI's contract that says `says`, a part at a time where it streams; `asked`: how often."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.says: tuple[str, ...] = ()
        self.tool_arguments: str | None = None
        self.asked = 0


class _Handler(BaseHTTPRequestHandler):
    server: Model

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked += 1
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream" if request.get("stream") else "application/json")
        self.end_headers()
        if request.get("stream"):
            for part in self.server.says:
                self._event({"delta": {"role": "assistant", "content": part}, "finish_reason": None})
            self._event({"delta": {}, "finish_reason": "stop"})
            self.wfile.write(b"data: [DONE]\n\n")
            return
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self.server.says)}
        if self.server.tool_arguments is not None:
            function = {"name": "search", "arguments": self.server.tool_arguments}
            message["tool_calls"] = [{"id": "call-1", "type": "function", "function": function}]
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        answer = {"id": "c", "object": "chat.completion", "created": 0, "model": "stub", "choices": [choice]}
        self.wfile.write(json.dumps({**answer, "usage": usage}).encode())

    def _event(self, choice: dict[str, Any]) -> None:
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "stub"}
        self.wfile.write(f"data: {json.dumps({**chunk, 'choices': [{'index': 0, **choice}]})}\n\n".encode())
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Texts:
    """The first of the tiny guards that is of two minds."""
    pairs = [(first, f" and {second}") for first, second in product(WORDS, WORDS)]
    for seed in range(20):
        directory = tiny_guard(tmp_path_factory.mktemp("guards") / str(seed), seed=seed)
        guard = Guard.from_pretrained(directory)
        halves = dict(zip(WORDS, (verdict.unsafe for verdict in guard.classify(WORDS)), strict=True))
        wholes = [verdict.unsafe for verdict in guard.classify(["".join(pair) for pair in pairs])]
        late = [pair for pair, unsafe in zip(pairs, wholes, strict=True) if unsafe and not halves[pair[0]]]
        if late and any(halves.values()):
            passes = next(word for word, unsafe in halves.items() if not unsafe)
            return Texts(directory, passes, next(word for word, unsafe in halves.items() if unsafe), late[0])
    pytest.fail("no tiny guard is of two minds")


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Model() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def proxy(ray_cluster: Any, texts: Texts, model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a LiteLLM proxy that asks the guard, with a key, before and after the model."""
    directory = tmp_path_factory.mktemp("litellm")
    command = [sys.executable, "-m", "serve.keys", "--file", str(directory / "keys"), "add", "litellm"]
    key = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    with served(texts.guard, keys=str(directory / "keys")) as guard:
        assert httpx.post(f"{guard}/beta/litellm_basic_guardrail_api", json={}).status_code == 401
        settings = {
            "model_list": [
                {
                    "model_name": "stub",
                    "litellm_params": {
                        "model": "openai/stub",
                        "api_base": f"http://127.0.0.1:{model.server_address[1]}/v1",
                        "api_key": "unused",
                    },
                }
            ],
            "guardrails": [
                {
                    "guardrail_name": "rayguard",
                    "litellm_params": {
                        "guardrail": "generic_guardrail_api",
                        "mode": ["pre_call", "post_call"],
                        "default_on": True,
                        "api_base": guard,
                        "api_key": "os.environ/RAYGUARD_KEY",
                        "streaming_sampling_rate": 1,
                    },
                }
            ],
        }
        (directory / "config.yaml").write_text(yaml.safe_dump(settings))
        port = free_port()
        environment = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            "LITELLM_MASTER_KEY": PROXY_KEY,
            "RAYGUARD_KEY": key,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # prices come from the network otherwise
            "NO_PROXY": "127.0.0.1",
        }
        command = [str(LITELLM), "--config", str(directory / "config.yaml"), "--host", "127.0.0.1", "--port", str(port)]
        log = directory / "log"
        with log.open("w") as output:
            process = subprocess.Popen(command, cwd=directory, env=environment, stdout=output, stderr=output)
        try:
            url = f"http://127.0.0.1:{port}"
            until(lambda: process.poll() is not None or _lives(url), "LiteLLM starts", seconds=300)
            assert process.poll() is None, log.read_text()[-3000:]
            yield url
        finally:
            process.terminate()
            process.wait()


def _lives(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/liveliness").is_success
    except httpx.HTTPError:
        return False


@pytest.fixture
def client(proxy: str, model: Model) -> Iterator[openai.OpenAI]:
    model.asked, model.tool_arguments = 0, None
    with openai.OpenAI(base_url=f"{proxy}/v1", api_key=PROXY_KEY, max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, text: Any) -> Any:
    return client.chat.completions.create(model="stub", messages=[{"role": "user", "content": text}])


def test_what_is_harmless_passes_both_ways(client: openai.OpenAI, model: Model, texts: Texts) -> None:
    model.says = (texts.passes,)
    answer = ask(client, texts.passes)
    assert (answer.choices[0].message.content, model.asked) == (texts.passes, 1)


def test_an_unsafe_request_does_not_reach_the_model(client: openai.OpenAI, model: Model, texts: Texts) -> None:
    with pytest.raises(openai.BadRequestError, match="Blocked as unsafe") as caught:
        ask(client, texts.blocked)
    assert model.asked == 0
    assert texts.blocked not in str(caught.value)


def test_an_unsafe_answer_does_not_reach_the_client(client: openai.OpenAI, model: Model, texts: Texts) -> None:
    model.says = (texts.blocked,)
    with pytest.raises(openai.BadRequestError, match="Blocked as unsafe") as caught:
        ask(client, texts.passes)
    assert model.asked == 1
    assert texts.blocked not in str(caught.value)


def test_arguments_of_tools_are_judged(client: openai.OpenAI, model: Model, texts: Texts) -> None:
    model.says, model.tool_arguments = (texts.passes,), json.dumps({"query": texts.passes})
    assert ask(client, texts.passes).choices[0].message.tool_calls
    model.tool_arguments = json.dumps({"query": texts.blocked})
    with pytest.raises(openai.BadRequestError, match="Blocked as unsafe"):
        ask(client, texts.passes)


def test_an_image_does_not_block(client: openai.OpenAI, model: Model, texts: Texts) -> None:
    model.says = (texts.passes,)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    assert ask(client, [{"type": "text", "text": texts.passes}, image]).choices


def test_a_streamed_answer_passes(client: openai.OpenAI, model: Model, texts: Texts) -> None:
    model.says = (texts.passes,)
    assert "".join(stream(client, texts.passes)) == texts.passes


def test_a_streamed_answer_ends_where_it_becomes_unsafe(client: openai.OpenAI, model: Model, texts: Texts) -> None:
    model.says = texts.late
    seen: list[str] = []
    with pytest.raises(openai.APIError, match="Blocked as unsafe"):
        for part in stream(client, texts.passes):
            seen.append(part)
    assert texts.late[1] not in "".join(seen)


def stream(client: openai.OpenAI, text: str) -> Iterator[str]:
    messages: Any = [{"role": "user", "content": text}]
    for chunk in client.chat.completions.create(model="stub", messages=messages, stream=True):
        yield from (choice.delta.content or "" for choice in chunk.choices)

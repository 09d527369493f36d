"""A generative guard behind a service that completes chats, against a server that answers as it is told."""

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import numpy as np
import pytest

from guardrail.chat_guard import ChatGuard, _ChatAnswer
from guardrail.evaluation import evaluate_set
from guardrail.evaluation_items import EvaluationItem
from guardrail.judge_formats import JUDGE_FORMATS
from guardrail.reading import Exchange
from guardrail.remote import TargetError, TextRefusedError
from guardrail.targets import is_url, open_guard, unsafe_scores

ANSWERS = {  # of a text that asks to steal, and of another
    "llama-guard": ("\n\nunsafe\nS2", "\n\nsafe"),
    "qwen3guard": ("Safety: Unsafe\nCategories: Non-violent Illegal Acts", "Safety: Safe\nCategories: None"),
    "wildguard": ("Harmful request: yes\nResponse refusal: N/A", "Harmful request: no\nResponse refusal: N/A"),
    "shieldgemma": ("Yes", "No"),
    "granite-guardian": ("<score> yes </score>", "<score> no </score>"),
    "rubric": ("Verdict: unsafe", "Verdict: safe"),
}


class ChatServer(ThreadingHTTPServer):
    """What `answer` returns of a request's body is the answer's text, or its status where it is a number."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies = []
        self.answer = lambda body: "Safety: Safe"
        self.tokens = None  # [(token, {other: logprob})] that are told where they are asked for
        self.tells_tokens = True
        self.takes_arguments = True
        self.finish_reason = "stop"
        self.models = ["tiny-guard"]
        self.key = None

    def guard(self, name, **options):
        format = JUDGE_FORMATS[name]
        chat = "chat/" if format.has_template else ""
        url = f"http://127.0.0.1:{self.server_address[1]}/v1/{chat}completions"
        return ChatGuard(url, format, sleep=lambda seconds: None, tries=2, **options)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def do_GET(self):
        if self.path != "/v1/models":
            self._reply(404, {})
        elif self.server.key and self.headers["Authorization"] != f"Bearer {self.server.key}":
            self._reply(401, {"error": "Unauthorized"})
        else:
            self._reply(200, {"data": [{"id": model} for model in self.server.models]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        said = self.server.answer(body)
        if isinstance(said, int):
            self._reply(said, {"error": {"message": "SECRET TEXT", "code": "of_the_test"}})
            return
        known = {"logprobs": self.server.tells_tokens, "chat_template_kwargs": self.server.takes_arguments}
        if any(name in body and not takes for name, takes in known.items()):
            self._reply(400, {"error": {"code": "unknown_argument"}})
            return
        choice = {"finish_reason": self.server.finish_reason}
        tokens = self.server.tokens if "logprobs" in body else None
        if self.path.endswith("/chat/completions"):
            choice["message"] = {"role": "assistant", "content": said}
            content = [
                {
                    "token": token,
                    "top_logprobs": [{"token": t, "logprob": p} for t, p in others.items()],
                }
                for token, others in tokens or []
            ]
            choice["logprobs"] = {"content": content} if tokens else None
        else:
            choice["text"] = said
            choice["logprobs"] = tokens and {"tokens": [t for t, _ in tokens], "top_logprobs": [o for _, o in tokens]}
        self._reply(200, {"id": "1", "choices": [choice]})

    def _reply(self, status, body):
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format, *args):
        """Say nothing."""


@pytest.fixture
def server():
    with ChatServer() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def asked(body):
    return body["messages"][0]["content"] if "messages" in body else body["prompt"]


@pytest.mark.parametrize("name", list(JUDGE_FORMATS))
def test_every_format_is_asked_and_read(server, name):
    server.answer = lambda body: ANSWERS[name]["steal" not in asked(body)]
    texts = [f"How do I {'steal' if i % 3 == 0 else 'bake'} number {i}?" for i in range(20)] + ["  "]
    guard = server.guard(name)
    scores, flagged = unsafe_scores(guard, texts)
    assert flagged.tolist() == [i % 3 == 0 for i in range(20)] + [False]
    assert scores.tolist() == flagged.astype(float).tolist()  # no tokens are told
    assert guard.name == "tiny-guard"
    assert {body["model"] for body in server.bodies} == {"tiny-guard"}
    assert len(server.bodies) == 20 * len(JUDGE_FORMATS[name].questions)
    if name == "shieldgemma":
        assert len({body["chat_template_kwargs"]["guideline"] for body in server.bodies}) == 4


def test_a_response_is_the_assistants_where_the_format_reads_such(server):
    exchange = Exchange("How do I bake?", "I will not say.")
    server.guard("qwen3guard").moderate([exchange])
    assert [(m["role"], m["content"]) for m in server.bodies[-1]["messages"]] == [
        ("user", "How do I bake?"),
        ("assistant", "I will not say."),
    ]
    server.answer = lambda body: "No"
    server.guard("granite-guardian").moderate([exchange])
    assert [m["content"] for m in server.bodies[-1]["messages"]] == ["How do I bake?", "I will not say."]


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("wildguard", "Harmful request: yes\nResponse refusal: {}\nHarmful response: {}"),
        ("rubric", "Verdict: {1}"),
    ],
)
def test_a_response_has_a_question_of_its_own_in_other_formats(server, name, answer):
    words = JUDGE_FORMATS[name].words
    refused, complied = Exchange("How do I steal?", "I will not say."), Exchange("How do I steal?", "Like this.")
    server.answer = lambda body: answer.format("no", words["I will not" in asked(body)])
    assert server.guard(name).moderate([refused, complied]).flagged.tolist() == [False, True]
    for said in ("How do I steal?", "I will not say."):
        assert any(asked(body).count(said) == 1 for body in server.bodies)


def test_a_format_without_a_question_about_responses_is_not_asked_about_them(server):
    server.answer = lambda body: "No"
    items = [
        EvaluationItem("1", "bake", None, False, None, None),
        EvaluationItem("2", "bake", "No.", False, None, None),
    ]
    guard = server.guard("shieldgemma")
    assert evaluate_set(guard, items)["refused"] == 1
    assert {asked(body) for body in server.bodies} == {"bake"}
    with pytest.raises(TargetError, match="no question about responses"):
        guard.moderate([Exchange("bake", "No.")])


def test_the_score_is_the_share_of_the_tokens_that_begin_a_verdict(server):
    server.answer = lambda body: "Safety: Unsafe\nCategories: Violent"
    alternatives = {" Un": math.log(0.5), " Safe": math.log(0.2), " Contro": math.log(0.1), " maybe": None}
    server.tokens = [("Safety", {"Safety": 0.0, "Safe": -3.0}), (":", {}), (" Un", alternatives), ("safe", {})]
    scores, flagged = unsafe_scores(server.guard("qwen3guard"), ["a"])
    assert flagged.all() and scores == pytest.approx([0.75])


def test_text_completions_tell_tokens_in_their_own_way(server):
    server.answer = lambda body: "Harmful request: no\n"
    server.tokens = [("Harmful request", None), (":", None), (" no", {" no": math.log(0.9), " yes": math.log(0.1)})]
    scores, flagged = unsafe_scores(server.guard("wildguard"), ["a"])
    assert not flagged.any() and scores == pytest.approx([0.1])


@pytest.mark.parametrize(
    ("name", "tells_tokens", "takes_arguments", "first"),
    [("qwen3guard", False, True, 1), ("rubric", True, False, 2), ("rubric", False, False, 3)],
)
def test_a_service_is_asked_with_what_it_takes_from_then_on(server, name, tells_tokens, takes_arguments, first, caplog):
    server.tells_tokens, server.takes_arguments = tells_tokens, takes_arguments
    server.answer = lambda body: ANSWERS[name][1]
    assert not server.guard(name, connections=1).flagged(["a", "b"]).any()
    asked_with = [{"logprobs", "chat_template_kwargs"} & body.keys() for body in server.bodies]
    assert len(asked_with) == first + 2 and asked_with[-1] == asked_with[-2]
    assert ("logprobs" in caplog.text, "chat_template_kwargs" in caplog.text) == (not tells_tokens, not takes_arguments)


def test_what_a_service_takes_is_not_unlearned_by_a_text_that_it_refuses(server):
    server.answer = lambda body: 400 if len(asked(body)) > 10 else "Safety: Safe"
    said = server.guard("qwen3guard", connections=1).moderate(["a", "b" * 20, "c"], skip_refused=True)
    assert np.isnan(said.probabilities[:, 0]).tolist() == [False, True, False]
    assert ["logprobs" in body for body in server.bodies] == [True, True, True]


@pytest.mark.parametrize(("reason", "vote"), [("stop", True), ("eos_token", True), (None, True), ("length", False)])
def test_an_answer_is_cut_only_where_the_service_says_so(server, reason, vote):
    server.answer, server.finish_reason = (lambda body: "safe"), reason
    said = server.guard("llama-guard").moderate(["a"], skip_refused=True)
    assert np.isfinite(said.probabilities[0, 0]) == vote


def test_unsafe_under_one_policy_is_unsafe_whatever_another_question_gets(server):
    policies = ["Yes", "as an AI", "No", "No"]
    server.answer = lambda body: policies.pop()
    assert server.guard("shieldgemma", connections=1).flagged(["a"]).all()


def test_a_service_with_several_models_is_told_which(server):
    server.models = ["base", "base", "adapter"]
    with pytest.raises(TargetError, match="serves base, adapter; say which, with #NAME behind the URL"):
        server.guard("qwen3guard").moderate(["a"])
    guard = open_guard(f"qwen3guard+{server.guard('qwen3guard').url}#adapter")
    guard.moderate(["a"])
    assert guard.name == "adapter" and server.bodies[-1]["model"] == "adapter"


def test_a_service_that_names_no_models_is_asked_without(server):
    url = server.guard("qwen3guard").url.replace("/v1/", "/gateway/")
    guard = open_guard(f"qwen3guard+{url}")
    assert not guard.flagged(["a"]).any()
    assert "model" not in server.bodies[-1] and guard.name == url


def test_a_missing_key_is_named(server):
    server.key = "secret"
    with pytest.raises(TargetError, match=r"HTTP 401; put the service's key into RAYGUARD_TARGET_KEY"):
        server.guard("qwen3guard").moderate(["a"])


def test_a_failure_does_not_wait_for_what_others_ask(server):
    release = threading.Event()

    def answer(body):
        if asked(body) == "a":
            return 404
        release.wait()
        return 503

    server.answer = answer
    guard = ChatGuard(server.guard("llama-guard").url, JUDGE_FORMATS["llama-guard"])  # which really waits
    try:
        with pytest.raises(TargetError, match="HTTP 404"):
            guard.moderate(["a", *"bcdef"])
    finally:
        release.set()
    server.answer = lambda body: "safe"
    assert not guard.flagged(["a"]).any()  # and can be asked again


def test_what_hangs_on_the_policy_is_flagged(server):
    server.answer = lambda body: "Safety: Controversial\nCategories: Violent"
    assert server.guard("qwen3guard").flagged(["a"]).all()


def test_answers_without_a_verdict_are_counted_as_refused(server):
    server.answer = lambda body: "I cannot help with that." if "cars" in asked(body) else "safe"
    items = [EvaluationItem(str(i), text, None, False, None, None) for i, text in enumerate(["a", "cars", "b"])]
    metrics = evaluate_set(server.guard("llama-guard"), items)
    assert (metrics["n"], metrics["refused"], metrics["fpr"]) == (2, 1, 0.0)
    with pytest.raises(TextRefusedError, match=r"no verdict in the format llama-guard.*text 2, of 4 characters"):
        server.guard("llama-guard").moderate(["a", "cars"])


def test_a_text_that_is_too_long_is_refused_and_a_failing_service_is_no_such_thing(server):
    server.answer = lambda body: 400 if len(asked(body)) > 10 else "safe"
    said = server.guard("llama-guard").moderate(["a", "b" * 20], skip_refused=True)
    assert np.isnan(said.probabilities[1, 0]) and not np.isnan(said.probabilities[0, 0])
    server.answer = lambda body: 500
    with pytest.raises(TargetError, match="failed 2 times in a row, the last time with HTTP 500") as caught:
        server.guard("llama-guard").moderate(["a"] * 50, skip_refused=True)
    assert "SECRET" not in str(caught.value) and not isinstance(caught.value, TextRefusedError)


def test_a_text_at_which_a_service_fails_whenever_it_is_asked_is_one_that_it_refuses(server):
    server.answer = lambda body: 500 if "cars" in asked(body) else "safe"
    said = server.guard("llama-guard").moderate(["a", "cars", "b"], skip_refused=True)
    assert np.isnan(said.probabilities[:, 0]).tolist() == [False, True, False]
    with pytest.raises(TargetError, match="failed 2 times in a row, the last time with HTTP 500"):
        server.guard("llama-guard").moderate(["a", "cars"])


def test_what_a_service_said_before_it_failed_is_kept_in_whatever_order_it_came(server, tmp_path):
    slow = threading.Event()

    def answer(body):
        if asked(body) == "a":
            slow.wait(10)
            return 500
        if asked(body) == "e":
            slow.set()
        return ANSWERS["llama-guard"]["steal" not in asked(body)]

    server.answer = answer
    texts = ["a", "steal b", "c", Exchange("steal", "d"), "e"]
    guard = server.guard("llama-guard", connections=2)  # the others are all asked beside the first
    guard.remember(tmp_path)
    with pytest.raises(TargetError, match="HTTP 500"):
        guard.moderate(texts)
    server.bodies.clear()
    server.answer = lambda body: "safe"
    again = server.guard("llama-guard")
    again.remember(tmp_path)
    assert again.flagged([*texts, "steal\n\nd"]).tolist() == [False, True, False, True, False, False]
    assert [asked(body) for body in server.bodies] == ["a", "steal\n\nd"]  # which is no exchange

    server.bodies.clear()
    other = server.guard("qwen3guard")
    server.answer = lambda body: "Safety: Safe"
    other.remember(tmp_path)
    assert not other.flagged(texts).any() and len(server.bodies) == 5  # another format


@pytest.mark.parametrize(("name", "path"), [("wildguard", "chat/completions"), ("qwen3guard", "completions")])
def test_an_endpoint_of_the_other_kind_is_refused(name, path):
    with pytest.raises(ValueError, match=f"is no endpoint for {name}: the URL is that of the endpoint itself"):
        open_guard(f"{name}+https://host/v1/{path}")


def test_what_answers_as_something_else_is_told(server):
    guard = server.guard("qwen3guard")
    server.models = []
    with pytest.raises(TargetError, match="/v1/models does not tell what it serves"):
        guard.moderate(["a"])
    with pytest.raises(TargetError, match=r"does not answer as such an endpoint does \(choices: Field required\)"):
        guard.read(httpx.Response(200, json={"text": "safe"}), _ChatAnswer)


def test_a_target_names_the_format_before_the_url():
    guard = open_guard("llama-guard+https://host/v1/chat/completions")
    assert isinstance(guard, ChatGuard)
    assert (guard.format.name, guard.url) == ("llama-guard", "https://host/v1/chat/completions")
    assert is_url("QWEN3GUARD+HTTP://host") and is_url("https://host") and not is_url("guards/https://host")
    with pytest.raises(ValueError, match="did you mean 'llama-guard'"):
        open_guard("llamaguard+https://host/v1/chat/completions")
    with pytest.raises(ValueError, match="carry no password"):
        open_guard("rubric+https://me:secret@host/v1/chat/completions")

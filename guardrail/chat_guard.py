"""A generative guard (Qwen3Guard, Llama Guard, ...) behind a service that completes chats: vLLM's, say.

Its decision is the verdict that it writes, in the format it was trained with; one that the label hangs on one's policy
("controversial") is taken for "unsafe". A text's score is the probability of a verdict that is not "safe", by the
tokens that the service says it might have written in its place; where it tells none, 1 or 0.
"""

import logging
import math
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import httpx
from pydantic import BaseModel, Field, ValidationError

from guardrail.judge_formats import JudgeFormat, Question, with_texts
from guardrail.kept_verdicts import Verdict
from guardrail.reading import Exchange, Readable
from guardrail.remote import TEXT_REFUSALS, RemoteGuard, TargetError, TextRefusedError
from guardrail.taxonomy import UNSAFE
from guardrail.text import encodable

logger = logging.getLogger(__name__)

_ALTERNATIVES = 5  # tokens that the service tells in the place of each; some tell no more


class _Said(NamedTuple):
    text: str
    finished: bool
    #: In the place of each token, some that might have been written, with their log-probabilities.
    alternatives: list[tuple[str, list[tuple[str, float]]]]


class _Alternative(BaseModel):
    token: str
    logprob: float | None = None


class _Token(BaseModel):
    token: str
    top_logprobs: list[_Alternative] | None = None


class _Tokens(BaseModel):
    content: list[_Token] | None = None


class _Message(BaseModel):
    content: str | None = None


class _ChatChoice(BaseModel):
    message: _Message
    finish_reason: str | None = None
    logprobs: _Tokens | None = None

    def said(self) -> _Said:
        alternatives = [
            (token.token, [(each.token, each.logprob) for each in token.top_logprobs or () if each.logprob is not None])
            for token in (self.logprobs and self.logprobs.content) or ()
        ]
        return _Said(self.message.content or "", self.finish_reason != "length", alternatives)


class _TextTokens(BaseModel):
    tokens: list[str] | None = None
    top_logprobs: list[dict[str, float | None] | None] | None = None


class _TextChoice(BaseModel):
    text: str
    finish_reason: str | None = None
    logprobs: _TextTokens | None = None

    def said(self) -> _Said:
        told = self.logprobs or _TextTokens()
        alternatives = [
            (token, [(other, logprob) for other, logprob in (others or {}).items() if logprob is not None])
            for token, others in zip(told.tokens or (), told.top_logprobs or (), strict=False)
        ]
        return _Said(self.text, self.finish_reason != "length", alternatives)


class _ChatAnswer(BaseModel):
    choices: list[_ChatChoice] = Field(min_length=1)


class _TextAnswer(BaseModel):
    choices: list[_TextChoice] = Field(min_length=1)


class _Model(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Model] = Field(min_length=1)


class ChatGuard(RemoteGuard):
    """A service that answers as OpenAI's chat (or, where a format has no chat template, text) completions do.

    A response is asked about behind its prompt, as the assistant's or in a question of its own; a format that has
    neither refuses it, unasked. What holds control tokens of the model's may end its question: the service alone could
    tell. A text to which the answer holds no verdict is one that the service refuses. No category has a score.

    Args:
        url: of the endpoint itself. Where the service has several models, "#" and a name behind it says which.
        format: how it is asked, and how its answers are read.
        connections: questions at a time.
        options: see `RemoteGuard`.

    Raises:
        ValueError: see `RemoteGuard`; or the endpoint is of the other kind.
    """

    timeout = 300.0  # a large model on a small machine

    def __init__(self, url: str, format: JudgeFormat, *, connections: int = 16, **options: Any) -> None:
        self.format = format
        ending = "/chat/completions" if format.has_template else "/completions"
        self.endpoint = f"https://HOST/v1{ending}"
        super().__init__(url, connections=connections, **{"sleep": self._wait, **options})
        parsed = httpx.URL(url)
        if not parsed.path.endswith(ending) or parsed.path.endswith("/chat/completions") is not format.has_template:
            raise ValueError(f"{url} is no endpoint for {format.name}: {self.hint}")
        self.model = parsed.fragment or None
        self._connections = connections
        self._accepted: int | None = None  # of `_extras`: the first that the service has taken
        self._worker = threading.local()  # `ended`: the event that what the thread works for has ended

    @property
    def _way(self) -> str:
        return repr(self.format)  # its questions, and how answers are read

    def _judged(self, texts: Sequence[Readable], places: Sequence[int], skip_refused: bool) -> Sequence[Verdict | None]:
        if self.model is None:
            self.model = self._served()
        ended = threading.Event()
        pool = ThreadPoolExecutor(self._connections, initializer=self._worker.__setattr__, initargs=("ended", ended))
        try:
            return list(pool.map(lambda place: self._verdict_or_failure(texts[place], place, skip_refused), places))
        finally:
            ended.set()  # after a failure or an interrupt nobody waits for what the others do
            pool.shutdown(wait=False, cancel_futures=True)

    def _wait(self, seconds: float) -> None:
        if getattr(self._worker, "ended", threading.Event()).wait(seconds):
            raise TargetError(f"{self.url} is not asked any more")

    def _served(self) -> str | None:
        """Return the model that the service has; None if it does not tell."""
        url = httpx.URL(self.url)
        path = url.path.removesuffix("/completions").removesuffix("/chat") + "/models"
        response = self.get(str(url.copy_with(path=path)))
        if response.status_code == 404:
            return None
        if not response.is_success:
            raise TargetError(self.refusal(response))
        try:
            names = list(dict.fromkeys(model.id for model in _Models.model_validate_json(response.content).data))
        except ValidationError:
            raise TargetError(f"{self.url}: {path} does not tell what it serves; {self.hint}") from None
        if len(names) > 1:
            raise TargetError(f"{self.url} serves {', '.join(names[:10])}; say which, with #NAME behind the URL")
        return names[0]

    def _verdict(self, text: Readable, place: int, skip_refused: bool) -> Verdict | None:
        verdicts, refusal = [], None
        if format := self.format.about(text):
            for question in format.questions:
                try:
                    verdicts.append(self._answer(format, question, text))
                except TextRefusedError as error:
                    refusal = error
        else:
            refusal = TextRefusedError(f"the format {self.format.name} has no question about responses")
        if refusal and not any(flagged for flagged, _ in verdicts):
            if skip_refused:
                return None
            raise TextRefusedError(f"{refusal}; that is text {place + 1}, of {len(str(text)):,} characters") from None
        flagged, score = any(flagged for flagged, _ in verdicts), max(score for _, score in verdicts)
        return self._keep(text, Verdict(flagged, {UNSAFE: score}))

    def _answer(self, format: JudgeFormat, question: Question, text: Readable) -> tuple[bool, float]:
        response = self._ask(question, text)
        answer = self.read(response, _ChatAnswer) if format.has_template else self.read(response, _TextAnswer)
        said = answer.choices[0].said()
        verdict = format.verdict(said.text, finished=said.finished)
        if verdict is None:
            raise TextRefusedError(
                f"{self.url}: an answer holds no verdict in the format {self.format.name}; see that it is the model's"
            )
        word, start = verdict
        flagged = word != self.format.words[1]
        return flagged, self._score(said, start, flagged)

    def _ask(self, question: Question, text: Readable) -> httpx.Response:
        """Return the answer to one question, asked with as much as the service takes."""
        body, extras = self._body(question, text), self._extras(question)
        for number, extra in enumerate(extras):
            if self._accepted not in (None, number):
                continue
            response = self.post(body | extra)
            if response.is_success:
                if self._accepted is None and number:
                    logger.warning("%s takes no %s", self.url, ", ".join(sorted(extras[0].keys() - extra.keys())))
                self._accepted = number
                return response
            if response.status_code not in TEXT_REFUSALS:
                break
        raise (TextRefusedError if response.status_code in TEXT_REFUSALS else TargetError)(self.refusal(response))

    def _extras(self, question: Question) -> list[dict[str, Any]]:
        """Return what is asked beside, the best first: not all services tell tokens, or take arguments of templates."""
        tokens: dict[str, Any] = {"logprobs": _ALTERNATIVES}
        if self.format.has_template:
            tokens = {"logprobs": True, "top_logprobs": _ALTERNATIVES}
        arguments = {"chat_template_kwargs": dict(question.arguments)} if question.arguments else {}
        with_arguments = [arguments | tokens, arguments]
        return with_arguments if self.format.needs_arguments or not arguments else [*with_arguments, tokens, {}]

    def _body(self, question: Question, text: Readable) -> dict[str, Any]:
        body: dict[str, Any] = {"temperature": 0.0, "max_tokens": self.format.max_new_tokens}
        if self.model is not None:
            body["model"] = self.model
        message = encodable(with_texts(question.message, text))
        if not self.format.has_template:
            return body | {"prompt": message}
        messages = [{"role": "user", "content": message}]
        if isinstance(text, Exchange) and self.format.reads_answers:
            messages.append({"role": "assistant", "content": encodable(text.response)})
        return body | {"messages": messages}

    def _score(self, said: _Said, start: int, flagged: bool) -> float:
        """Return the probability of a verdict other than "safe" where one starts in an answer."""
        place = 0
        for token, alternatives in said.alternatives:
            place += len(token)
            if place > start:
                sums = {True: 0.0, False: 0.0}
                for other, logprob in alternatives:
                    begun = re.sub(r"[^a-z]", "", other.casefold())
                    kinds = {word != self.format.words[1] for word in self.format.verdicts if word.startswith(begun)}
                    if begun and len(kinds) == 1:
                        sums[kinds.pop()] += math.exp(logprob)
                return sums[True] / sum(sums.values()) if sums[flagged] else float(flagged)
        return float(flagged)

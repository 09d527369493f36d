"""A generative guard (Qwen3Guard, Llama Guard, ...) behind a service that completes chats: vLLM's, say.

Its decision is the verdict that it writes, in the format it was trained with. A text's score is the probability of that
verdict being "unsafe", by the tokens that the service says it might have written in its place; where it tells none, 1
or 0. A verdict that the label hangs on one's policy ("controversial") is taken for "unsafe".
"""

import math
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import httpx
from pydantic import BaseModel, Field, ValidationError

from guardrail.judge_formats import TEXT, JudgeFormat, Question
from guardrail.reading import Exchange, Readable
from guardrail.remote import TEXT_REFUSALS, Moderation, RemoteGuard, TargetError, TextRefusedError, nothing, sendable

_ALTERNATIVES = 8  # tokens that the service tells in the place of each


class _Said(NamedTuple):
    text: str
    finished: bool
    #: In the place of each token, log-probabilities of some that might have been written.
    alternatives: list[tuple[str, dict[str, float]]]


class _Alternative(BaseModel):
    token: str
    logprob: float


class _Token(BaseModel):
    token: str
    top_logprobs: list[_Alternative] = []


class _Tokens(BaseModel):
    content: list[_Token] | None = None


class _Message(BaseModel):
    content: str | None = None


class _ChatChoice(BaseModel):
    message: _Message
    finish_reason: str | None = None
    logprobs: _Tokens | None = None

    def said(self) -> _Said:
        tokens = (self.logprobs and self.logprobs.content) or []
        alternatives = [(each.token, {other.token: other.logprob for other in each.top_logprobs}) for each in tokens]
        return _Said(self.message.content or "", self.finish_reason == "stop", alternatives)


class _TextTokens(BaseModel):
    tokens: list[str] = []
    top_logprobs: list[dict[str, float] | None] | None = None


class _TextChoice(BaseModel):
    text: str
    finish_reason: str | None = None
    logprobs: _TextTokens | None = None

    def said(self) -> _Said:
        tokens = self.logprobs or _TextTokens()
        others = tokens.top_logprobs or []
        alternatives = [(token, other or {}) for token, other in zip(tokens.tokens, others, strict=False)]
        return _Said(self.text, self.finish_reason == "stop", alternatives)


class _Answer(BaseModel):
    choices: list[_ChatChoice | _TextChoice] = Field(min_length=1)


class _Model(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Model] = Field(min_length=1)


class ChatGuard(RemoteGuard):
    """A service that answers as OpenAI's chat (or, where a format has no chat template, text) completions do.

    A response is asked about behind its prompt, as the assistant's, where the format reads such; else both are one
    text. What holds control tokens of the model's may end its question: the service alone could tell.

    Args:
        url: of the endpoint itself.
        format: how it is asked, and how its answers are read.
        connections: questions at a time.
        options: see `RemoteGuard`.

    Raises:
        ValueError: see `RemoteGuard`.
    """

    def __init__(self, url: str, format: JudgeFormat, *, connections: int = 16, **options: Any) -> None:
        self.format = format
        self.endpoint = f"https://HOST/v1/{'chat/' if format.has_template else ''}completions"
        super().__init__(url, connections=connections, **options)
        self._connections = connections
        self._tells_alternatives = True

    def moderate(self, texts: Sequence[Readable], *, skip_refused: bool = False) -> Moderation:
        """Return what the service says of texts; see `RemoteGuard`.

        A text to which the answer holds no verdict is one that it refuses. No category has a score.
        """
        said = nothing(len(texts))
        asked = [index for index, text in enumerate(texts) if str(text).strip()]
        if asked and self.model is None:
            self.model = self._served()
        pool = ThreadPoolExecutor(self._connections)
        try:
            verdicts = pool.map(lambda index: self._verdict(texts[index], index, skip_refused), asked)
            for index, verdict in zip(asked, verdicts, strict=True):
                said.flagged[index], said.probabilities[index, 0] = verdict
        finally:
            pool.shutdown(cancel_futures=True)
        return said

    def _served(self) -> str:
        """Return the model that the service names first."""
        url = httpx.URL(self.url)
        path = url.path.removesuffix("/completions").removesuffix("/chat")
        response = self.get(str(url.copy_with(path=f"{path}/models")))
        try:
            return _Models.model_validate_json(response.content).data[0].id
        except ValidationError:
            raise TargetError(f"{self.url}: {path}/models does not tell what it serves; {self.hint}") from None

    def _verdict(self, text: Readable, index: int, skip_refused: bool) -> tuple[bool, float]:
        """Return decision and score of the text at `index`; of one that is skipped, False and NaN."""
        try:
            verdicts = [self._answer(question, text) for question in self.format.questions]
        except TextRefusedError as error:
            if skip_refused:
                return False, math.nan
            raise TextRefusedError(f"{error}; that is text {index + 1}, of {len(str(text)):,} characters") from None
        return any(flagged for flagged, _ in verdicts), max(score for _, score in verdicts)

    def _answer(self, question: Question, text: Readable) -> tuple[bool, float]:
        response = self._ask(question, text)
        try:
            said = _Answer.model_validate_json(response.content).choices[0].said()
        except ValidationError as error:
            problem = error.errors(include_input=False, include_url=False)[0]
            raise TargetError(f"{self.url} does not answer as it should ({problem['msg']}); {self.hint}") from None
        verdict = self.format.verdict(said.text, finished=said.finished)
        if verdict is None:
            raise TextRefusedError(
                f"{self.url}: an answer holds no verdict in the format {self.format.name}; see that it is the model's"
            )
        word, start = verdict
        flagged = word != self.format.words[1]
        return flagged, self._score(said, start, flagged)

    def _ask(self, question: Question, text: Readable) -> httpx.Response:
        """Return the answer to one question; without alternatives where the service gives none."""
        body = self._body(question, text)
        if self._tells_alternatives:
            chat = {"logprobs": True, "top_logprobs": _ALTERNATIVES}
            response = self.post(body | (chat if self.format.has_template else {"logprobs": _ALTERNATIVES}))
            if response.is_success:
                return response
        response = self.post(body)
        if response.is_success:
            self._tells_alternatives = False
            return response
        raise (TextRefusedError if response.status_code in TEXT_REFUSALS else TargetError)(self.refusal(response))

    def _body(self, question: Question, text: Readable) -> dict[str, Any]:
        body = {"model": self.model, "temperature": 0.0, "max_tokens": self.format.max_new_tokens}
        answer = text.response if isinstance(text, Exchange) and self.format.reads_answers else None
        shown = text.prompt if isinstance(text, Exchange) and answer is not None else str(text)
        message = question.message.replace(TEXT, sendable(shown))
        if not self.format.has_template:
            return body | {"prompt": message}
        messages = [{"role": "user", "content": message}]
        if answer is not None:
            messages.append({"role": "assistant", "content": sendable(answer)})
        return body | {"messages": messages, "chat_template_kwargs": dict(question.arguments)}

    def _score(self, said: _Said, start: int, flagged: bool) -> float:
        """Return the probability of a verdict other than "safe" where one starts in an answer."""
        place = 0
        for token, alternatives in said.alternatives:
            place += len(token)
            if place > start:
                sums = {True: 0.0, False: 0.0}
                for other, logprob in alternatives.items():
                    begun = re.sub(r"[^a-z]", "", other.casefold())
                    kinds = {word != self.format.words[1] for word in self.format.verdicts if word.startswith(begun)}
                    if begun and len(kinds) == 1:
                        sums[kinds.pop()] += math.exp(logprob)
                return sums[True] / sum(sums.values()) if sums[flagged] else float(flagged)
        return float(flagged)

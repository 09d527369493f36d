"""A guard behind a moderation endpoint as OpenAI defined it: ours, OpenAI's, anyone's.

A service tells its decision (`flagged`) and a score for each category, but no threshold and no P(unsafe). So decisions
are the service's own, and where texts are ranked (AUPRC, say) a text's score is that of its highest category: it can be
low in a text that is flagged.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import httpx
from pydantic import BaseModel, Field

from guardrail.kept_verdicts import Verdict
from guardrail.reading import Readable
from guardrail.remote import TEXT_REFUSALS, RemoteGuard, TargetError, TextRefusedError, UnansweredError
from guardrail.taxonomy import LABELS, UNSAFE
from guardrail.text import encodable

_Score = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Result(BaseModel):
    flagged: bool
    category_scores: dict[str, _Score | None] = {}


class _Answer(BaseModel):
    model: str | None = None
    results: list[_Result] = Field(min_length=1)


class ModerationEndpoint(RemoteGuard):
    """A service that answers as OpenAI's moderation endpoint does; it is asked about an exchange as about one text.

    Args:
        url: of the endpoint itself. Where the service has several models, "#" and a name behind it says which.
        batch: texts in a request; becomes 1 for good once the service refuses, or fails at, a list whose texts it takes
            one by one.
        options: see `RemoteGuard`.

    Raises:
        ValueError: see `RemoteGuard`.
    """

    endpoint = "https://HOST/v1/moderations"

    def __init__(self, url: str, *, batch: int = 32, **options: Any) -> None:
        super().__init__(url, **options)
        self.batch = batch
        named = httpx.URL(url).fragment
        self._body = {"model": named} if named else {}

    def _judged(self, texts: Sequence[Readable], places: Sequence[int], skip_refused: bool) -> Sequence[Verdict | None]:
        verdicts: list[Verdict | None] = []
        while len(verdicts) < len(places):
            batch = places[len(verdicts) : len(verdicts) + self.batch]
            found: Sequence[Verdict | None] | None = None
            if self.batch > 1:
                try:
                    found = self._verdicts([texts[place] for place in batch])
                except UnansweredError as error:
                    if len(batch) == 1 and not skip_refused:
                        raise
                    self._ask_another(error)
            if found is None:
                # One text may be at fault, or the list: then each text is taken alone.
                found = [self._verdict_or_failure(texts[place], place, skip_refused) for place in batch]
                if None not in found:  # it was no text
                    self.batch = 1
            verdicts += found
        return verdicts

    def _verdict(self, text: Readable, place: int, skip_refused: bool) -> Verdict | None:
        response = self.post({**self._body, "input": encodable(str(text))})
        of_text = response.status_code in TEXT_REFUSALS
        if of_text and skip_refused:
            return None
        if not response.is_success:
            # Of the text no more than what tells it apart.
            told = f"{self.refusal(response)}; that is text {place + 1}, of {len(str(text)):,} characters"
            raise (TextRefusedError if of_text else TargetError)(told)
        results = self._read(response)
        if len(results) != 1:
            raise TargetError(f"{self.url} gives {len(results)} results for one text")
        return self._keep(text, _verdict_of(results[0]))

    def _verdicts(self, texts: list[Readable]) -> list[Verdict] | None:
        """Return the verdict on each text, sent as a list; None: the service takes no such list."""
        response = self.post({**self._body, "input": [encodable(str(text)) for text in texts]})
        if response.status_code in TEXT_REFUSALS:
            return None
        if not response.is_success:
            raise TargetError(self.refusal(response))
        results = self._read(response)
        if len(results) != len(texts):  # it reads a list as the parts of one message
            return None
        return [self._keep(text, _verdict_of(result)) for text, result in zip(texts, results, strict=True)]

    def _read(self, response: httpx.Response) -> list[_Result]:
        answer = self.read(response, _Answer)
        if answer.model:
            digest = response.headers.get("Rayguard-Guard")  # ours calls two guards of one version by one name
            self.model = f"{answer.model}@{digest}" if digest else answer.model
        return answer.results


def _verdict_of(result: _Result) -> Verdict:
    scores = {key: score for key, score in result.category_scores.items() if score is not None}
    highest = max(scores.values(), default=float(result.flagged))
    return Verdict(result.flagged, {UNSAFE: highest} | {key: scores[key] for key in LABELS[1:] if key in scores})

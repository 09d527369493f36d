"""A guard behind a moderation endpoint as OpenAI defined it: ours, OpenAI's, anyone's.

A service tells its decision (`flagged`) and a score for each category, but no threshold and no P(unsafe). So decisions
are the service's own, and where texts are ranked (AUPRC, say) a text's score is that of its highest category: it can be
low in a text that is flagged.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import httpx
import numpy as np
from pydantic import BaseModel, Field

from guardrail.guard import LABELS
from guardrail.reading import Readable
from guardrail.remote import TEXT_REFUSALS, Moderation, RemoteGuard, TargetError, TextRefusedError, nothing
from guardrail.text import encodable

_Score = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Result(BaseModel):
    flagged: bool
    category_scores: dict[str, _Score | None] = {}


class _Answer(BaseModel):
    model: str | None = None
    results: list[_Result] = Field(min_length=1)


class ModerationEndpoint(RemoteGuard):
    """A service that answers as OpenAI's moderation endpoint does.

    Args:
        url: of the endpoint itself.
        batch: texts in a request; becomes 1 for good once the service refuses a list whose texts it takes one by one.
        options: see `RemoteGuard`.

    Raises:
        ValueError: see `RemoteGuard`.
    """

    endpoint = "https://HOST/v1/moderations"

    def __init__(self, url: str, *, batch: int = 32, **options: Any) -> None:
        super().__init__(url, **options)
        self.batch = batch

    def moderate(self, texts: Sequence[Readable], *, skip_refused: bool = False) -> Moderation:
        """Return what the service says of texts, prompt and response of an exchange as one; see `RemoteGuard`."""
        return self._moderate([str(text) for text in texts], skip_refused)

    def _moderate(self, texts: Sequence[str], skip_refused: bool) -> Moderation:
        said = nothing(len(texts))
        asked = [index for index, text in enumerate(texts) if text.strip()]  # services refuse the others
        done = 0
        while done < len(asked):
            rows = asked[done : done + self.batch]
            results: Sequence[_Result | None] | None = None
            if self.batch > 1:
                results = self._results([texts[index] for index in rows])
            if results is None:
                # One text may be at fault, or the list: then each text is taken alone.
                results = [self._result(texts[index], index, skip_refused) for index in rows]
                if None not in results:  # it was no text
                    self.batch = 1
            for index, result in zip(rows, results, strict=True):
                said.probabilities[index] = np.nan if result is None else _row(result)
                said.flagged[index] = result is not None and result.flagged
            done += len(rows)
        return said

    def _result(self, text: str, index: int, skip_refused: bool) -> _Result | None:
        """Return the result for one text, the one at `index` of those to be moderated; None if it is skipped."""
        response = self.post({"input": encodable(text)})
        of_text = response.status_code in TEXT_REFUSALS
        if of_text and skip_refused:
            return None
        if not response.is_success:
            # Of the text no more than what tells it apart.
            told = f"{self.refusal(response)}; that is text {index + 1}, of {len(text):,} characters"
            raise (TextRefusedError if of_text else TargetError)(told)
        results = self._read(response)
        if len(results) != 1:
            raise TargetError(f"{self.url} gives {len(results)} results for one text")
        return results[0]

    def _results(self, texts: list[str]) -> list[_Result] | None:
        """Return a result for each text; None if they were sent as a list and the service takes no such list."""
        response = self.post({"input": [encodable(text) for text in texts]})
        if response.status_code in TEXT_REFUSALS:
            return None
        if not response.is_success:
            raise TargetError(self.refusal(response))
        results = self._read(response)
        return results if len(results) == len(texts) else None  # else it reads a list as the parts of one message

    def _read(self, response: httpx.Response) -> list[_Result]:
        answer = self.read(response, _Answer)
        self.model = answer.model or self.model
        return answer.results


def _row(result: _Result) -> list[float]:
    scores = {key: score for key, score in result.category_scores.items() if score is not None}
    return [max(scores.values(), default=float(result.flagged)), *(scores.get(key, 0.0) for key in LABELS[1:])]

"""The stage that keeps evaluation texts out of training data, disguised ones too."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from guardrail.curation.config import CurationConfig
from guardrail.curation.facts import NearIndex, signatures, stored_signatures
from guardrail.curation.runs import RunIndex, loose_words
from guardrail.curation.stage import Drop, Judge, Survey
from guardrail.deobfuscation import plain, readings
from guardrail.text import canonical, digest, joined

#: By name of an evaluation set, its (item id, text) pairs.
EvaluationTexts = Mapping[str, Sequence[tuple[str, str]]]

_FEW_LETTERS = 4  # of fewer, letters alone do not say which text it is


class Decontamination:
    """Records that equal, nearly equal, or share a run of words with a text that a guard is measured on.

    They are looked up by all that they can be read as (`guardrail.deobfuscation`).
    """

    name = "decontamination"

    def __init__(self, config: CurationConfig, evaluation: EvaluationTexts) -> None:
        self.config, self.evaluation = config, evaluation
        texts = [part for name in sorted(evaluation) for item in evaluation[name] for part in (name, *item)]
        self.settings: Mapping[str, Any] = {
            **config.model_dump(include={"ngram", "near_duplicate", "permutations", "shingle", "shingle_unit"}),
            "evaluation": digest(*texts),
        }

    def prepare(self, survey: Survey) -> Judge:
        """Return the judge, which holds the evaluation texts as hashes."""
        return Index(self.config, self.evaluation).drops


class Index:
    """The evaluation texts by letters, by words in a row, and by MinHash; disguised ones also as what they say."""

    def __init__(self, config: CurationConfig, evaluation: EvaluationTexts) -> None:
        self._config = config
        items = [
            (f"{name}/{item_id}", way)
            for name in sorted(evaluation)
            for item_id, text in evaluation[name]
            for way in dict.fromkeys((canonical(text), plain(text)))
        ]
        self._places = [place for place, _ in items]
        texts = [text for _, text in items]
        self._equal: dict[str, int] = {}
        for number, text in enumerate(texts):
            self._equal.setdefault(_key(text, loose_words(text)), number)
        self._runs = RunIndex(texts, config.ngram)
        self._near = NearIndex(signatures(texts, config), config)

    def drop(self, text: str, response: str | None) -> Drop | None:
        """Return why a request and its response may not be trained on, or None; the evidence starts with "set/id".

        What nearly is an evaluation text `drops` finds alone, by the signatures of a batch.

        Args:
            text: the request; it alone may not equal an evaluation text either.
            response: the answer, if any.
        """
        return self._dropped(_said(text, response), None)

    def drops(self, batch: pa.Table) -> list[Drop | None]:
        """Return the verdicts on a batch of records."""
        columns = (batch[name].to_pylist() for name in ("text", "response"))
        said = [_said(text, response) for text, response in zip(*columns, strict=True)]
        disguised = {row: each.plain for row, each in enumerate(said) if each.plain is not None}
        rows = list(disguised)
        pairs = self._near.near(stored_signatures(batch["signature"]))
        for at, number, similarity in self._near.near(signatures(list(disguised.values()), self._config)):
            pairs.append((rows[at], number, similarity))
        near: dict[int, str] = {}
        for row, number, similarity in pairs:
            near.setdefault(row, f"{self._places[number]}: {similarity:.2f}")
        return [self._dropped(each, near.get(row)) for row, each in enumerate(said)]

    def _dropped(self, said: "_Said", near: str | None) -> Drop | None:
        listed = [loose_words(reading) for reading in said.readings]
        for reading, each in zip(said.readings[: said.whole], listed, strict=False):
            if (number := self._equal.get(_key(reading, each))) is not None:
                return Drop("equals an evaluation text", self._places[number])
        if near is not None:
            return Drop("nearly an evaluation text", near)
        for each in listed:
            if shared := self._runs.shared(each):
                return Drop("shares words with an evaluation text", f"{self._places[shared.number]}: {shared.words}")
        return None


class _Said(NamedTuple):
    """What a record can be read as: the first `whole` readings are of its request, or of all of it.

    `plain` is what it most likely says; None where that is what is written.
    """

    readings: list[str]
    whole: int
    plain: str | None


def _said(text: str, response: str | None) -> _Said:
    found, said = readings(text), plain(text)
    if response is None:
        return _Said(found, len(found), said if said != found[0] else None)
    answers, answered = readings(response), plain(response)
    disguised = (said, answered) != (found[0], answers[0])
    whole = [*found, canonical(joined(text, response))]
    return _Said([*whole, *answers[1:]], len(whole), joined(said, answered) if disguised else None)


def _key(text: str, listed: Sequence[str]) -> str:
    letters = "".join(listed)
    return digest(letters if len(letters) >= _FEW_LETTERS else text)

"""The stage that keeps evaluation texts out of training data, disguised ones too."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from guardrail.curation.config import CurationConfig
from guardrail.curation.facts import NearIndex, signatures, stored_signatures
from guardrail.curation.runs import RunIndex, loose_words
from guardrail.curation.semantic import LEVELS, whole_vectors
from guardrail.curation.stage import Drop, Judge, Survey, are_trusted_seeds, keep_all
from guardrail.deobfuscation import plain, readings
from guardrail.embedding import shared_encoder
from guardrail.static_embedding import StaticEncoder
from guardrail.text import canonical, digest, joined

#: By name of an evaluation set, its (item id, text) pairs.
EvaluationTexts = Mapping[str, Sequence[tuple[str, str]]]

_SETTINGS = {
    *("ngram", "near_duplicate", "permutations", "shingle", "shingle_unit"),
    *("semantic_duplicate", "semantic_encoder", "trusted_sources"),
}
_LINEAGE = ["id", "parent_id", "seed_id"]
_TEXTS_AT_ONCE = 1000  # whose products with all evaluation texts are in memory
_FEW_LETTERS = 4  # of fewer, letters alone do not say which text it is


class Decontamination:
    """Records that equal a text that a guard is measured on, nearly do, say the same, or share a run of words with it.

    So does all that grew from such a record: in other words it is still what the guard is measured on.
    They are looked up by all that they can be read as (`guardrail.deobfuscation`). Seeds of `trusted_sources` may say
    much the same: contrasts do, and what is written to a pattern.
    """

    name = "decontamination"

    def __init__(self, config: CurationConfig, evaluation: EvaluationTexts) -> None:
        self.config, self.evaluation = config, evaluation
        texts = [part for name in sorted(evaluation) for item in evaluation[name] for part in (name, *item)]
        self.settings: Mapping[str, Any] = {
            **config.model_dump(mode="json", include=_SETTINGS),
            "evaluation": digest(*texts),
        }

    def prepare(self, survey: Survey) -> Judge:
        """Return the judge, which holds the evaluation texts as hashes and vectors; without any it looks at nothing."""
        if not any(self.evaluation.values()):
            return keep_all
        index = Index(self.config, self.evaluation)
        lineage = survey.inputs(_LINEAGE)
        grown = lineage.filter(pc.not_equal(lineage["id"], lineage["seed_id"]))
        if not grown.num_rows:
            return index.drops
        ancestors = pc.unique(pa.chunked_array([*grown["seed_id"].chunks, *grown["parent_id"].chunks]))
        # Of all inputs: a seed that went as a duplicate says the same to what grew from it.
        found = survey.computed(functools.partial(_contaminated, index, ancestors), of_inputs=True)
        # Of several rows of one id the least evidence stays, whatever their order.
        contaminated = dict(sorted(zip(*found.to_pydict().values(), strict=True), reverse=True))
        generations = sorted(zip(*(grown[name].to_pylist() for name in _LINEAGE), strict=True), key=str, reverse=True)
        while more := {
            own: contaminated[by]
            for own, *parents in generations
            if own not in contaminated and (by := next((each for each in parents if each in contaminated), None))
        }:
            contaminated |= more
        return functools.partial(_drops_with_descendants, index, contaminated)


def _contaminated(index: "Index", ancestors: pa.Array, batch: pa.Table) -> pa.Table:
    """Return which records of a batch that others grew from have to go, `id` and `evidence`."""
    parents = batch.filter(pc.is_in(batch["id"], value_set=ancestors))
    drops = index.drops(parents) if parents.num_rows else []
    rows = [
        {"id": parent, "evidence": drop.evidence}
        for parent, drop in zip(parents["id"].to_pylist(), drops, strict=True)
        if drop
    ]
    return pa.Table.from_pylist(rows, pa.schema([("id", pa.string()), ("evidence", pa.string())]))


def _drops_with_descendants(index: "Index", contaminated: dict[str, str], batch: pa.Table) -> list[Drop | None]:
    parents = zip(*(batch[name].to_pylist() for name in _LINEAGE[1:]), strict=True)
    return [
        drop or next((Drop("grew from an evaluation text", contaminated[by]) for by in of if by in contaminated), None)
        for drop, of in zip(index.drops(batch), parents, strict=True)
    ]


class Index:
    """The evaluation texts by letters, words in a row, MinHash and embedding; disguised ones also as what they say."""

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
        encoder = shared_encoder(config.semantic_encoder)
        if isinstance(encoder, StaticEncoder):
            encoder = encoder.fitted(encoder.token_counts(texts))
        self._encoder, self._vectors = encoder, whole_vectors(encoder, texts).T

    def drops(self, batch: pa.Table) -> list[Drop | None]:
        """Return the verdicts on a batch of records; the evidence starts with "set/id".

        A request alone may not equal an evaluation text either.
        """
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
        alike = self._alike(said)
        for row in np.flatnonzero(are_trusted_seeds(batch, self._config.trusted_sources)).tolist():
            alike.pop(row, None)
        return [self._dropped(each, near.get(row), alike.get(row)) for row, each in enumerate(said)]

    def _alike(self, said: Sequence["_Said"]) -> dict[int, str]:
        """Return which rows say the same as an evaluation text, and the evidence."""
        shown = [(row, text) for row, each in enumerate(said) for text in each.shown]
        least = math.ceil(self._config.semantic_duplicate * LEVELS**2)
        found: dict[int, str] = {}
        for start in range(0, len(shown), _TEXTS_AT_ONCE):
            part = shown[start : start + _TEXTS_AT_ONCE]
            products = whole_vectors(self._encoder, [text for _, text in part]) @ self._vectors
            for (row, _), number, product in zip(part, products.argmax(axis=1), products.max(axis=1), strict=True):
                if product >= least:
                    found.setdefault(row, f"{self._places[number]}: {min(1, product / LEVELS**2):.2f}")
        return found

    def _dropped(self, said: "_Said", near: str | None, alike: str | None) -> Drop | None:
        listed = [loose_words(reading) for reading in said.readings]
        for reading, each in zip(said.readings[: said.whole], listed, strict=False):
            if (number := self._equal.get(_key(reading, each))) is not None:
                return Drop("equals an evaluation text", self._places[number])
        if near is not None:
            return Drop("nearly an evaluation text", near)
        for each in listed:
            if shared := self._runs.shared(each):
                return Drop("shares words with an evaluation text", f"{self._places[shared.number]}: {shared.words}")
        return None if alike is None else Drop("says what an evaluation text says", alike)


class _Said(NamedTuple):
    """What a record can be read as: the first `whole` readings are of its request, or of all of it.

    `literal` is all of it as it is written; `plain` what it most likely says, None where that is the same.
    """

    readings: list[str]
    whole: int
    literal: str
    plain: str | None

    @property
    def shown(self) -> list[str]:
        """What is compared by embedding: what all of it says, and its request alone."""
        return list(dict.fromkeys((self.plain or self.literal, self.readings[0])))


def _said(text: str, response: str | None) -> _Said:
    found, said = readings(text), plain(text)
    if response is None:
        return _Said(found, len(found), found[0], said if said != found[0] else None)
    answers, answered = readings(response), plain(response)
    disguised = (said, answered) != (found[0], answers[0])
    literal = canonical(joined(text, response))
    whole = [*found, literal]
    return _Said([*whole, *answers[1:]], len(whole), literal, joined(said, answered) if disguised else None)


def _key(text: str, listed: Sequence[str]) -> str:
    letters = "".join(listed)
    return digest(letters if len(letters) >= _FEW_LETTERS else text)

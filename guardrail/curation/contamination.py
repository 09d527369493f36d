"""The stage that keeps evaluation texts out of training data."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from datasketch import MinHash

from guardrail.curation.config import CurationConfig
from guardrail.curation.facts import from_bytes, minhash, near_index
from guardrail.curation.stage import Drop, Judge, Survey
from guardrail.text import canonical, digest, joined, words

#: By name of an evaluation set, its (item id, text) pairs.
EvaluationTexts = Mapping[str, Sequence[tuple[str, str]]]


_SHORTEST = 3  # words: two in a row stand in texts that have nothing to do with one another


class Decontamination:
    """Records that equal, nearly equal, or share a run of words with a text that a guard is measured on."""

    name = "decontamination"

    def __init__(self, config: CurationConfig, evaluation: EvaluationTexts) -> None:
        self.config, self.evaluation = config, evaluation
        texts = [part for name in sorted(evaluation) for item in evaluation[name] for part in (name, *item)]
        self.settings: Mapping[str, Any] = {
            **config.model_dump(include={"ngram", "near_duplicate", "permutations", "shingle"}),
            "evaluation": digest(*texts),
        }

    def prepare(self, survey: Survey) -> Judge:
        """Return the judge, which holds the evaluation texts as hashes."""
        return functools.partial(_judge_contamination, Index(self.config, self.evaluation))


class Index:
    """What is known of the evaluation texts: "set/id" by canonical text, by words in a row, and by MinHash."""

    def __init__(self, config: CurationConfig, evaluation: EvaluationTexts) -> None:
        self.config = config
        self.texts: dict[str, str] = {}
        self.ngrams: dict[str, str] = {}
        self.lengths: set[int] = set()  # of the n-grams: a text of fewer words than `ngram` is one as a whole
        self.near = near_index(config)
        self.signed: list[tuple[str, MinHash]] = []
        for name in sorted(evaluation):
            for item_id, text in evaluation[name]:
                place = f"{name}/{item_id}"
                self.texts.setdefault(_key(text), place)
                listed = words(text)
                length = min(config.ngram, len(listed))
                if length >= _SHORTEST:
                    self.lengths.add(length)
                    for ngram in _ngrams(listed, length):
                        self.ngrams.setdefault(ngram, place)
                signature = minhash(text, config)
                self.near.insert(len(self.signed), signature)
                self.signed.append((place, signature))

    def drop(self, text: str, response: str | None, signature: MinHash) -> Drop | None:
        """Return why a request and its response may not be trained on, or None.

        Args:
            text: the request.
            response: the answer, if any; the request alone may not equal an evaluation text either.
            signature: MinHash of both.
        """
        whole = joined(text, response)
        equal = self.texts.get(_key(whole)) or self.texts.get(_key(text))
        if equal:
            return Drop("equals an evaluation text", equal)
        listed = words(whole)
        for length in sorted(self.lengths):
            for ngram in _ngrams(listed, length):
                if ngram in self.ngrams:
                    return Drop("shares words with an evaluation text", f"{self.ngrams[ngram]}: {ngram}")
        for number in sorted(self.near.query(signature)):
            place, other = self.signed[number]
            similarity = signature.jaccard(other)
            if similarity >= self.config.near_duplicate:
                return Drop("nearly an evaluation text", f"{place}: {similarity:.2f}")
        return None


def _ngrams(listed: Sequence[str], n: int) -> list[str]:
    return [" ".join(listed[i : i + n]) for i in range(len(listed) - n + 1)]


def _key(text: str) -> str:
    return digest(canonical(text))


def _judge_contamination(index: Index, batch: pa.Table) -> list[Drop | None]:
    columns = (batch[name].to_pylist() for name in ("text", "response", "signature"))
    return [
        index.drop(text, response, from_bytes(signature)) for text, response, signature in zip(*columns, strict=True)
    ]

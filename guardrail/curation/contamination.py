"""The stage that keeps evaluation texts out of training data."""

import functools
from collections.abc import Mapping, Sequence

from datasketch import MinHashLSH

from guardrail.curation.config import CurationConfig
from guardrail.curation.duplicates import minhash
from guardrail.curation.stage import Drop, Judge, Survey
from guardrail.records import Record
from guardrail.text import canonical, digest, joined, words


class Decontamination:
    """Records that equal, nearly equal, or share a run of words with a text that a guard is measured on."""

    name = "decontamination"

    def __init__(self, config: CurationConfig, evaluation: Mapping[str, Sequence[tuple[str, str]]]) -> None:
        self.config, self.evaluation = config, evaluation

    def prepare(self, survey: Survey) -> Judge:
        """Return the judge, which holds the evaluation texts as hashes."""
        return functools.partial(_judge_contamination, Index(self.config, self.evaluation))


class Index:
    """What is known of the evaluation texts: "set/id" by canonical text, by word n-gram, and by MinHash."""

    def __init__(self, config: CurationConfig, evaluation: Mapping[str, Sequence[tuple[str, str]]]) -> None:
        self.config = config
        self.texts: dict[str, str] = {}
        self.ngrams: dict[str, str] = {}
        self.near = MinHashLSH(config.near_duplicate, config.permutations)
        self.signatures = {}
        for name, items in evaluation.items():
            for item_id, text in items:
                place = f"{name}/{item_id}"
                self.texts.setdefault(digest(canonical(text)), place)
                for ngram in self._ngrams(text):
                    self.ngrams.setdefault(ngram, place)
                if place not in self.signatures:
                    self.signatures[place] = minhash(text, config)
                    self.near.insert(place, self.signatures[place])

    def _ngrams(self, text: str) -> list[str]:
        listed, n = words(text), self.config.ngram
        return [" ".join(listed[i : i + n]) for i in range(len(listed) - n + 1)]

    def drop(self, text: str) -> Drop | None:
        """Return why a text may not be trained on, or None."""
        equal = self.texts.get(digest(canonical(text)))
        if equal:
            return Drop("equals an evaluation text", equal)
        for ngram in self._ngrams(text):
            if ngram in self.ngrams:
                return Drop("shares words with an evaluation text", f"{self.ngrams[ngram]}: {ngram}")
        signature = minhash(text, self.config)
        for place in sorted(self.near.query(signature)):
            similarity = signature.jaccard(self.signatures[place])
            if similarity >= self.config.near_duplicate:
                return Drop("nearly an evaluation text", f"{place}: {similarity:.2f}")
        return None


def _judge_contamination(index: Index, records: Sequence[Record]) -> list[Drop | None]:
    return [index.drop(joined(record["text"], record["response"])) for record in records]

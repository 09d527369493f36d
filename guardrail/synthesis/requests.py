"""What is asked of a model, in which order, and what becomes of its answers. Knows nothing of engines."""

import dataclasses
import heapq
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, field_validator

from guardrail.few_shot import borrows, cleaned
from guardrail.generable import generation_seeds, may_sexualise_minors
from guardrail.languages import detected
from guardrail.records import Record, make_record
from guardrail.rows import did_you_mean
from guardrail.synthesis.strategies import EXAMPLE_WORDS, STRATEGIES, STRATEGY, Strategy, whole_sentences
from guardrail.text import digest

#: What seeds are balanced over: topic or data set, label, and the category most common there.
Kind = tuple[str, bool, str]


class SynthesisConfig(BaseModel):
    """How many synthetic requests are asked for, and of which model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field("bundled:smollm2-135m-instruct", description="causal LM: bundled name, directory or hub id")
    strategies: dict[str, NonNegativeInt] = Field(
        {strategy.name: strategy.count for strategy in STRATEGIES if strategy.count},
        description="answers asked for per seed, by strategy (guardrail/synthesis/strategies.py); 0: none",
    )
    max_seeds: int | None = Field(None, ge=1, description="seeds that are grown, spread over the topics; None: all")
    max_requests: int | None = Field(
        None, ge=1, description="pairs of seed and strategy that are asked for, spread over both; None: all"
    )
    max_prompt_tokens: int = Field(256, ge=32, description="longest instruction; what is longer is not asked")
    max_new_tokens: int = Field(40, ge=4, description="longest answer")
    max_around_tokens: int = Field(96, ge=4, description="longest text around a seed; cut to whole sentences")
    temperature: float = Field(0.6, gt=0, description="of sampling")
    batch_size: int = Field(
        512, ge=1, description="requests an engine is given at once; more keep it fuller, a killed run loses them"
    )
    engines: int = Field(1, ge=1, description="engines that generate in parallel")
    kv_cache_gib: int = Field(1, ge=1, description="an engine's key-value cache on a CPU")
    gpu_memory: float = Field(0.9, gt=0, le=1, description="share of an accelerator's memory an engine takes")

    def max_tokens_of(self, strategy: str) -> int:
        """Return how long an answer to a strategy may be."""
        return self.max_around_tokens if STRATEGY[strategy].relation == "around" else self.max_new_tokens

    @field_validator("strategies")
    @classmethod
    def _names_are_known(cls, strategies: dict[str, int]) -> dict[str, int]:
        for name in strategies:
            if name not in STRATEGY:
                near = did_you_mean(name, STRATEGY)
                raise ValueError(f"no strategy is named {name!r}{near} Known: {', '.join(STRATEGY)}")
        return strategies


@dataclasses.dataclass(frozen=True)
class Request:
    """One thing to ask the model: what a strategy makes of `parent`, with one answer to each prompt."""

    parent: Record
    strategy: str
    prompts: tuple[str, ...]


def requests(seeds: Sequence[Record], config: SynthesisConfig, seed: int) -> Iterator[Request]:
    """Yield what to ask for; seeds that must never be generated from are left out.

    However early one stops, the numbers of requests of two strategies differ by at most one, and so do those of two
    kinds unless nothing is left of the smaller. Of a kind's seeds that a strategy has not had, it gets the one that was
    asked for least. A pair of seed and strategy that may not be (see `_prompts`) is passed over.

    Args:
        seeds: records of any label.
        config: how much to ask for.
        seed: decides which examples and values of an axis stand beside a seed.
    """
    strategies = [STRATEGY[name] for name, count in sorted(config.strategies.items()) if count]
    kinds = _by_kind(_spread(generation_seeds(seeds), config.max_seeds))
    asked = (
        Request(parent, strategy.name, prompts)
        for kind, parent, strategy in _turns(kinds, strategies)
        if (prompts := _prompts(strategy, parent, kinds[kind], config.strategies[strategy.name], seed))
    )
    return itertools.islice(asked, config.max_requests)


def _by_kind(seeds: Sequence[Record]) -> dict[Kind, list[Record]]:
    """Return the seeds of each kind by id."""
    common: dict[str, Counter[str]] = {}
    for record in seeds:
        common.setdefault(record["source"], Counter()).update(record["categories"] or ())
    found: dict[Kind, list[Record]] = {}
    for record in sorted(seeds, key=lambda r: r["id"]):
        count = common[record["source"]]
        main = max(record["categories"] or [""], key=lambda category: (count[category], category))
        found.setdefault((record["source"], record["unsafe"], main), []).append(record)
    return dict(sorted(found.items()))


def _spread(seeds: Sequence[Record], most: int | None) -> list[Record]:
    """Return at most `most` seeds, the kinds in turn."""
    ranked = [(rank, record) for kind in _by_kind(seeds).values() for rank, record in enumerate(kind)]
    return [record for _, record in sorted(ranked, key=lambda entry: (entry[0], entry[1]["id"]))[:most]]


def _turns(kinds: dict[Kind, list[Record]], strategies: Sequence[Strategy]) -> Iterator[tuple[Kind, Record, Strategy]]:
    """Yield every seed with every strategy once, in the order that `requests` describes.

    In a lap each kind has one turn, and the strategies go round with the turns. A round of as many laps as there are
    strategies gives each kind every strategy once: where numbers of kinds and strategies have a common divisor, a kind
    would meet the same ones again, but for a shift by one whenever all strategies stand equal. So a strategy finds a
    seed that it has not had in each round, and a kind of n seeds is done after n of them.
    """
    queues = {kind: [(0, index, 0) for index in range(len(seeds))] for kind, seeds in kinds.items()}
    for round_ in itertools.count() if strategies else ():
        left = [kind for kind, seeds in kinds.items() if len(seeds) > round_]
        if not left:
            return
        laps_until_equal = len(strategies) // math.gcd(len(left), len(strategies))
        for lap in range(len(strategies)):
            for place, kind in enumerate(left):
                number = (lap * len(left) + place + lap // laps_until_equal) % len(strategies)
                yield kind, kinds[kind][_next_seed(queues[kind], number)], strategies[number]


def _next_seed(queue: list[tuple[int, int, int]], strategy: int) -> int:
    """Return the first seed in a heap of (times asked for, seed, bit mask of its strategies) that lacks a strategy."""
    passed = []
    while queue[0][2] >> strategy & 1:
        passed.append(heapq.heappop(queue))
    times, seed, strategies = heapq.heappop(queue)
    for entry in (*passed, (times + 1, seed, strategies | 1 << strategy)):
        heapq.heappush(queue, entry)
    return seed


def _prompts(strategy: Strategy, parent: Record, kin: Sequence[Record], count: int, seed: int) -> tuple[str, ...]:
    """Return the prompts for a seed; none where the answers could sexualise minors, or could not be checked for it."""
    text = parent["text"]
    turned = strategy.relation == "contrast" and not parent["unsafe"]
    if turned and may_sexualise_minors(f"{text} (sex)"):
        return ()  # it speaks of minors, and nobody knows which harm the model turns it into
    sexual = "sexual" in (parent["categories"] or ()) or may_sexualise_minors(f"{text} (child)")
    if strategy.language and sexual:
        return ()  # the check of answers reads English
    prompts = []
    for index in range(count):
        random = np.random.default_rng(int(digest(str(seed), strategy.name, parent["id"], str(index)), 16))
        prompts.append(strategy.prompt(parent, kin, random))
    # No seed does; two of them beside each other might.
    return tuple(prompt for prompt in prompts if not may_sexualise_minors(prompt))


def parse(answer: str) -> str:
    """Return the request in a model's answer: its first line, without the quotes and markup around it."""
    return cleaned(answer.strip().split("\n", 1)[0])


def written(request: Request, answer: str, *, finished: bool = True) -> str | None:
    """Return the text of a record: the model's answer, or that with the seed in it; None if only a part is there.

    Args:
        request: what was asked.
        answer: as the model gave it.
        finished: whether it ended by itself. Of text around a seed, sentences that did are enough.
    """
    place, text = STRATEGY[request.strategy].place, parse(answer)
    if not finished:
        text = whole_sentences(text) if place else ""
        if not text:
            return None
    return place(request.parent["text"], text) if place and text else text


def drop_reason(request: Request, text: str) -> str | None:
    """Return why an answer, parsed, becomes no record, or None."""
    if not text:
        return "answer empty"
    if may_sexualise_minors(text):
        return "answer withheld"
    strategy = STRATEGY[request.strategy]
    if strategy.language and detected(text) not in (None, strategy.language):
        return "answer not translated"
    # Kin are shown seeds, not those examples.
    if strategy.relation != "kin" and borrows(text, EXAMPLE_WORDS, request.parent["text"]):
        return "answer taken from the examples"
    return None


def synthetic_record(request: Request, text: str, *, model: str) -> Record:
    """Return an answer, parsed, as a record with its parent's lineage and the label that the strategy gives it."""
    parent, strategy = request.parent, STRATEGY[request.strategy]
    unsafe, categories = strategy.label(parent)
    return make_record(
        text,
        unsafe=unsafe,
        categories=categories,
        source=parent["source"],
        parent=parent,
        method=strategy.name,
        language=strategy.language or parent["language"],
        attacker_version=model,
    )

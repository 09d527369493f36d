"""Growing seeds into synthetic requests: the prompts, and what becomes of a model's answer.

Two strategies, both conditioned on the label through their examples: *augment* asks for another request of the same
kind, *paraphrase* for the same request in other words. Knows nothing of engines.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from guardrail.records import Record, make_record
from guardrail.seeds import generation_seeds, may_sexualise_minors

Strategy = Literal["augment", "paraphrase"]
STRATEGIES: tuple[Strategy, ...] = ("augment", "paraphrase")
_EXAMPLES = 4


class SynthesisConfig(BaseModel):
    """How many synthetic requests are asked for, and of which model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field("bundled:smollm2-135m-instruct", description="causal LM: bundled name, directory or hub id")
    augment: int = Field(1, ge=0, description="new requests asked for per seed")
    paraphrase: int = Field(1, ge=0, description="paraphrases asked for per seed")
    max_seeds: int | None = Field(None, ge=1, description="seeds that are grown, spread over the topics; None: all")
    max_prompt_tokens: int = Field(256, ge=32, description="longest instruction; seeds that need more are left out")
    max_new_tokens: int = Field(40, ge=4, description="longest answer")
    temperature: float = Field(0.6, gt=0, description="of sampling")
    batch_size: int = Field(512, ge=1, description="prompts an engine is given at once; more keep it fuller")
    engines: int = Field(1, ge=1, description="engines that generate in parallel")
    kv_cache_gib: int = Field(1, ge=1, description="an engine's key-value cache on a CPU")
    gpu_memory: float = Field(0.9, gt=0, le=1, description="share of an accelerator's memory an engine takes")


@dataclasses.dataclass(frozen=True)
class Request:
    """One thing to ask the model: `prompt` is about `parent`, `count` answers are wanted."""

    parent: Record
    strategy: Strategy
    prompt: str
    count: int


def requests(seeds: Sequence[Record], config: SynthesisConfig, seed: int) -> list[Request]:
    """Return what to ask for, seed by seed; seeds that must never be generated from are left out.

    Args:
        seeds: records of any label.
        config: how much to ask for.
        seed: decides which examples stand beside a seed.
    """
    allowed = _spread(generation_seeds(seeds), config.max_seeds)
    same_kind: dict[tuple[str, bool], list[Record]] = {}
    for record in allowed:
        same_kind.setdefault((record["source"], record["unsafe"]), []).append(record)
    random = np.random.default_rng(seed)
    found = []
    for record in allowed:
        if config.augment:
            kin = [r for r in same_kind[record["source"], record["unsafe"]] if r["id"] != record["id"]]
            chosen = random.permutation(len(kin))[: _EXAMPLES - 1]
            examples = [*(kin[index]["text"] for index in chosen), record["text"]]
            found.append(Request(record, "augment", _augment_prompt(examples), config.augment))
        if config.paraphrase:
            found.append(Request(record, "paraphrase", _paraphrase_prompt(record["text"]), config.paraphrase))
    return found


def _spread(seeds: Sequence[Record], most: int | None) -> list[Record]:
    """Return at most `most` seeds, the topics and labels in turn, in a stable order."""
    if most is None or len(seeds) <= most:
        return list(seeds)
    rank: dict[tuple[str, bool], int] = {}
    order = []
    for record in sorted(seeds, key=lambda r: r["id"]):
        kind = (record["source"], record["unsafe"])
        rank[kind] = rank.get(kind, 0) + 1
        order.append((rank[kind], record["id"], record))
    return [record for _, _, record in sorted(order, key=lambda entry: entry[:2])[:most]]


def _augment_prompt(examples: Sequence[str]) -> str:
    listed = "\n".join(f"- {' '.join(text.split())}" for text in examples)
    return f"Messages that people sent to a chat assistant, all of one kind:\n\n{listed}\n-"


def _paraphrase_prompt(text: str) -> str:
    return (
        "Each request is said again in other words.\n\n"
        "Request: How can I bake bread at home?\nRewritten: What is a way to make bread in my own kitchen?\n\n"
        "Request: List places to camp near a lake.\n"
        "Rewritten: Which spots beside a lake are good for sleeping in a tent?\n\n"
        f"Request: {' '.join(text.split())}\nRewritten:"
    )


def parse(answer: str) -> str:
    """Return the request in a model's answer: its first line, without the quotes and markup around it."""
    return answer.strip().split("\n", 1)[0].strip().strip("\"'`*").strip()


def synthetic_record(request: Request, answer: str, *, model: str) -> Record | None:
    """Return the answer as a record with the parent's label and lineage.

    None where the answer holds no text, or one that must not be kept whoever wrote it.
    """
    text = parse(answer)
    if not text or may_sexualise_minors(text):
        return None
    parent = request.parent
    return make_record(
        text,
        unsafe=parent["unsafe"],
        categories=parent["categories"],
        source=parent["source"],
        parent=parent,
        method=request.strategy,
        attacker_version=model,
    )

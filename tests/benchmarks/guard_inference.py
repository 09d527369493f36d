"""What `Guard.classify` costs beside the bare model on ideal batches.

python -m tests.benchmarks.guard_inference --guard DIR [--data-dir DIR] [--prompts 10000] [--repeats 5] [--threads N]

Prompts of mixed lengths, all distinct: at most half are embedded seeds, and texts of the evaluation sets where there is
a folder of them; the others are made of these, several in one, or written anew by a transform. Both sides tokenise, and
compute with the same weights, threads and tokens per batch. They take turns in one run, on the same prompts under a new
number at each turn, so that nothing is remembered; the ratio is the median over the turns.

- bare: each prompt's first window alone, sorted by length, in batches of little padding, to logits.
- api: `Guard.classify`: all windows of long prompts, what disguised ones say, spans and typed verdicts.

`api_vs_bare` is of prompts per second, whatever each side reads of them; `api_vs_bare_tokens` of tokens per second, as
the API reads long and disguised prompts more than once.
"""

import argparse
import dataclasses
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from guardrail.batching import cheapest_batches
from guardrail.evaluation_sets import ALL_SETS, load_available_evaluations
from guardrail.guard import Guard
from guardrail.seeds import embedded_seeds
from guardrail.transforms import TRANSFORMS

_MOST_JOINED = 8  # texts in one prompt
_TRANSFORMED = 8  # every how manieth prompt that is made is written by a transform


def prompts(data_dir: Path | None, count: int) -> list[str]:
    """Return distinct prompts."""
    texts = [seed["text"] for seed in embedded_seeds()]
    if data_dir:
        sets, _ = load_available_evaluations([ALL_SETS], data_dir)
        texts += [item.text for items in sets.values() for item in items]
    found = list(dict.fromkeys(texts))
    random.Random(0).shuffle(found)
    made = _made(found)
    distinct = dict.fromkeys(found[: count // 2])
    while len(distinct) < count:
        distinct[next(made)] = None
    return list(distinct)


def _made(texts: Sequence[str]) -> Iterator[str]:
    draw, generator = random.Random(1), np.random.default_rng(1)
    transforms = list(TRANSFORMS.values())
    while True:
        if draw.randrange(_TRANSFORMED):
            yield "\n".join(draw.choices(texts, k=draw.randint(2, _MOST_JOINED)))
        else:
            yield draw.choice(transforms).apply(draw.choice(texts), generator)


@dataclasses.dataclass(frozen=True)
class Turn:
    """What a side took [s], and what it read."""

    seconds: float
    tokens: int


def bare(guard: Guard, texts: list[str]) -> Turn:
    """Return what the model alone takes."""
    begun = time.perf_counter()
    ids = guard.tokenizer(texts, truncation=True, max_length=guard.card.window)["input_ids"]
    lengths = [len(each) for each in ids]
    for batch in cheapest_batches(lengths, guard.backend.batch_tokens, guard.backend.call_tokens):
        padded = guard.tokenizer.pad({"input_ids": [ids[place] for place in batch]}, return_tensors="np")
        guard.backend.logits(padded["input_ids"], padded["attention_mask"])
    return Turn(time.perf_counter() - begun, sum(lengths))


def api(guard: Guard, texts: list[str]) -> Turn:
    """Return what the Python API takes."""
    begun = time.perf_counter()
    verdicts = guard.classify(texts)
    return Turn(time.perf_counter() - begun, sum(verdict.tokens for verdict in verdicts))


def main() -> None:
    """Alternate both sides, print the table and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guard", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, help="folder of local copies of the evaluation sets")
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5, help="turns, after one that does not count")
    parser.add_argument("--threads", type=int, help="that both compute with; by default torch's own number")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    guard = Guard.from_pretrained(arguments.guard)
    texts = prompts(arguments.data_dir, arguments.prompts)
    turns: dict[str, list[Turn]] = {"bare": [], "api": []}
    for number in range(2 * (arguments.repeats + 1)):
        # Who begins alternates, too.
        side = (bare, api)[(number + number // 2) % 2]
        turns[side.__name__].append(side(guard, [f"{text} {number}" for text in texts]))
        print(f"{side.__name__}: {turns[side.__name__][-1]}", file=sys.stderr, flush=True)
    measured = {name: each[1:] for name, each in turns.items()}  # allocators and caches warm up at the first

    lengths = np.array([len(ids) for ids in guard.tokenizer(texts, verbose=False)["input_ids"]])
    quartiles = ", ".join(f"{value:.0f}" for value in np.quantile(lengths, (0, 0.25, 0.5, 0.75, 1)))
    print(f"{len(texts)} prompts of {quartiles} tokens (least, quartiles, most), {torch.get_num_threads()} threads")
    for name, of_side in measured.items():
        seconds = float(np.median([turn.seconds for turn in of_side]))
        rates = f"{len(texts) / seconds:10.1f} prompts/s{of_side[0].tokens / seconds:10.0f} tokens/s"
        print(f"{name:5}{seconds:9.2f} s{rates}")
    pairs = list(zip(measured["bare"], measured["api"], strict=True))
    by_prompts = [one.seconds / other.seconds for one, other in pairs]
    by_tokens = [other.tokens / other.seconds / (one.tokens / one.seconds) for one, other in pairs]
    figures = {
        "api_vs_bare": round(float(np.median(by_prompts)), 4),
        "api_vs_bare_tokens": round(float(np.median(by_tokens)), 4),
        "prompts": len(texts),
        "threads": torch.get_num_threads(),
        "seconds": {name: [round(turn.seconds, 3) for turn in of_side] for name, of_side in measured.items()},
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

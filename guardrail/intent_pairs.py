"""Pairs of a goal and a rewriting of it, labelled by whether the rewriting still asks for what the goal asks.

Three sources: pairs that language-model assistants wrote one by one, what attackers wrote, labelled by such assistants,
and templates over the embedded seeds. Labels are of one reading, but for two held-out files (see `HELD_OUT_FILES`).
Goals whose hash is divisible by four are held out: no pair of theirs is trained on.
"""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import yaml

from guardrail.fidelity import content_words
from guardrail.generable import generation_seeds
from guardrail.records import Record

#: Two that two readers agree on: what an attacker wrote as it learned, and pairs written to be hard after the model's
#: form was settled. Then older ones, of one reading: written to be hard, what an untrained attacker wrote, and of that
#: what an earlier model took for kept.
HELD_OUT_FILES = (
    "held_out_trained.jsonl",
    "held_out_fresh.jsonl",
    "held_out.jsonl",
    "held_out_sampled.jsonl",
    "held_out_mined.jsonl",
)
WRITTEN_FILES = ("written.jsonl", "written_2.jsonl", "written_3.jsonl")
ATTACKER_FILES = ("sampled.jsonl", "mined.jsonl", "mined_2.jsonl")
_TEMPLATE = "template:"


@dataclasses.dataclass(frozen=True)
class Pair:
    """A goal, a rewriting of it, and whether it is `kept`: whether a careful reader would call it the same request.

    `phenomenon` names what was done to the goal; `unsafe` is the goal's label; `by_attacker` tells what an attacker
    wrote from what was written to train on.
    """

    goal: str
    attack: str
    kept: bool
    phenomenon: str
    unsafe: bool
    by_attacker: bool = False

    @property
    def from_template(self) -> bool:
        """Whether nobody read the pair."""
        return self.phenomenon.startswith(_TEMPLATE)


def is_held_out(goal: str) -> bool:
    """Whether pairs of a goal are for measuring only."""
    return int(hashlib.sha256(goal.encode()).hexdigest(), 16) % 4 == 0


def read_pairs(path: Path) -> list[Pair]:
    """Read pairs from JSON lines with the keys of `Pair`.

    Raises:
        ValueError: a line is no pair; the message names file and line.
    """
    pairs = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            pair = Pair(**json.loads(line))
            if not (isinstance(pair.kept, bool) and pair.goal.strip() and isinstance(pair.attack, str)):
                raise ValueError("goal and attack are texts, kept is true or false")
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path}, line {number} is no pair: {error}") from error
        pairs.append(pair)
    return pairs


def embedded_pairs(*names: str) -> list[Pair]:
    """Return the pairs of files that rayguard ships."""
    return [
        dataclasses.replace(pair, by_attacker=name in ATTACKER_FILES)
        for name in names
        for pair in read_pairs(_folder() / name)
    ]


def _folder() -> Path:
    return Path(str(resources.files("guardrail").joinpath("intent_data")))


# --- Templates ------------------------------------------------------------------------------------------------------

_HOW = re.compile(
    r"^(?:how (?:do|can|could|would|should) (?:i|you|we|one)|what is (?:a|the) (?:best )?way to"
    r"|(?:please )?(?:tell|show|teach) me (?:how )?to|explain (?:to me )?how to|i (?:want|need) to|help me(?: to)?) "
    r"(?P<phrase>.+)$",
    re.IGNORECASE,
)
_DO = re.compile(
    r"^(?:please )?(?P<phrase>(?:write|give|list|make|draft|create|describe|compose|plan|invent|generate|design|explain"
    r"|find|suggest|tell|show|translate|summari[sz]e) .+)$",
    re.IGNORECASE,
)


def template_pairs(seeds: Sequence[Record], seed: int = 0) -> list[Pair]:
    """Return two pairs for each seed that is not held out, one kept and one lost.

    Args:
        seeds: records; those that must not be generated from are left out.
        seed: decides which template each seed gets.
    """
    allowed = sorted(
        (record for record in generation_seeds(seeds) if not is_held_out(record["text"])), key=lambda r: r["id"]
    )
    random = np.random.default_rng(seed)
    neighbours = _Neighbours(allowed)
    pairs = []
    for record in allowed:
        goal = record["text"]
        for kept, (phenomenon, attack) in ((True, _kept(goal, random)), (False, _lost(record, neighbours, random))):
            if attack and attack != goal:
                pairs.append(Pair(goal, attack, kept, _TEMPLATE + phenomenon, record["unsafe"]))
    return pairs


@functools.cache
def _templates() -> dict[str, list[str]]:
    return yaml.safe_load((_folder() / "templates.yaml").read_text("utf-8"))


def _phrase(goal: str) -> tuple[str, bool] | None:
    """Return the verb phrase of a request and whether the request asks how; None where it has another form."""
    for pattern, asks_how in ((_HOW, True), (_DO, False)):
        if found := pattern.match(goal.strip()):
            phrase = found["phrase"].rstrip(" ?.!")
            return phrase[0].lower() + phrase[1:], asks_how
    return None


def _kept(goal: str, random: np.random.Generator) -> tuple[str, str]:
    phrase = _phrase(goal)
    if phrase and random.random() < 0.8:
        said, asks_how = phrase
        return "kept phrase", _pick(_templates()["kept_how" if asks_how else "kept_do"], random).format(said)
    ways: dict[str, Callable[[], str]] = {
        "context": lambda: f"{_pick(_templates()['context'], random)} {goal}",
        "casual": lambda: goal.rstrip("?.!").lower(),
        "typos": lambda: _with_typos(goal, random),
    }
    name = _pick(list(ways), random)
    return name, ways[name]()


def _lost(record: Record, neighbours: "_Neighbours", random: np.random.Generator) -> tuple[str, str]:
    goal = record["text"]
    phrase = _phrase(goal)
    if phrase and random.random() < 0.45:
        return "lost phrase", _pick(_templates()["lost"], random).format(phrase[0])
    ways: dict[str, Callable[[], str]] = {
        "look-alike": lambda: neighbours.nearest(record, unsafe=not record["unsafe"], random=random),
        "drift": lambda: neighbours.nearest(record, unsafe=record["unsafe"], random=random),
        "truncation": lambda: _truncated(goal, random),
        "loop": lambda: _loop(goal, random),
        "emptied": lambda: _emptied(goal, random),
        "shuffled": lambda: " ".join(random.permutation(goal.split()).tolist()),
    }
    name = _pick(list(ways), random)
    return name, ways[name]()


class _Neighbours:
    """Seeds that share content words, for pairs that are near in wording and far in meaning."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records
        self.words = [set(content_words(record["text"])) for record in records]

    def nearest(self, record: Record, *, unsafe: bool, random: np.random.Generator) -> str:
        """Return one of the five other seeds of a label that share most words with a record."""
        own = set(content_words(record["text"]))
        others = [
            (len(own & words), i)
            for i, words in enumerate(self.words)
            if self.records[i]["unsafe"] is unsafe and self.records[i]["id"] != record["id"]
        ]
        best = sorted(others, reverse=True)[:5]
        return self.records[best[int(random.integers(len(best)))][1]]["text"] if best else ""


def _truncated(goal: str, random: np.random.Generator) -> str:
    listed = goal.split()
    return " ".join(listed[: max(1, int(len(listed) * random.uniform(0.25, 0.55)))])


def _loop(goal: str, random: np.random.Generator) -> str:
    listed = goal.rstrip("?.!").split()
    start = int(random.integers(len(listed)))
    return " ".join(listed[start : start + 3] * int(random.integers(3, 6)))


def _emptied(goal: str, random: np.random.Generator) -> str:
    """Return the goal with its longest words replaced by words that say nothing."""
    listed = goal.split()
    longest = sorted(range(len(listed)), key=lambda i: -len(listed[i]))[: max(1, len(listed) // 3)]
    for index in longest:
        listed[index] = _pick(("something", "thing", "work", "it", "good", "people"), random)
    return " ".join(listed)


def _with_typos(goal: str, random: np.random.Generator) -> str:
    letters = list(goal)
    for _ in range(max(1, len(letters) // 25)):
        at = int(random.integers(max(1, len(letters) - 1)))
        letters[at : at + 2] = reversed(letters[at : at + 2])
    return "".join(letters)


def _pick(options: Sequence[str], random: np.random.Generator) -> str:
    return options[int(random.integers(len(options)))]


def all_training_pairs(seeds: Sequence[Record], seed: int = 0) -> Iterator[Pair]:
    """Yield every pair to train on, each (goal, attack) once: hand labels go before templates."""
    seen = set()
    for pair in (*embedded_pairs(*WRITTEN_FILES, *ATTACKER_FILES), *template_pairs(seeds, seed)):
        if (pair.goal, pair.attack) not in seen and not is_held_out(pair.goal):
            seen.add((pair.goal, pair.attack))
            yield pair

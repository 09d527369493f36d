"""Failure signatures: where guards of this kind are known to fail, each measured on what a finished run has left.

Attack styles and harm categories that training did not have, synthetic against human text, languages other than
English, and drift between a guard and attacks of other rounds. Every figure is a share with its Wilson interval, beside
the one it is to be compared with. Knows no run directory: `jobs/failure_signatures.py` reads it.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from guardrail.cards import FEW
from guardrail.evaluation import misjudged
from guardrail.guard import Guard
from guardrail.guard_card import GUARD_FILE
from guardrail.languages import declared_language, detected
from guardrail.metrics import wilson
from guardrail.records import Record, write_records
from guardrail.training import fine_tune
from guardrail.training_config import TrainingConfig

Metric = Literal["recall", "fpr", "success_rate"]
Row = dict[str, Any]
METRICS: tuple[Metric, ...] = ("recall", "fpr")
_ENGLISH, _NOT_TOLD = "en", "not told"


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """What a run has left.

    Attributes:
        config: how its guards were trained.
        seed: a round's guard was trained with this plus the round's number.
        guards: the guard directory of each round.
        training: the records that each round's guard was trained on.
        promoted: whether each round's guard was.
        attacks: the attempts of each round that kept their label, each with its `style`; of round 0 none.
        validation, held_out: the seeds that no guard was trained on.
        directory: where guards that are trained without something are written.
    """

    config: TrainingConfig
    seed: int
    guards: Sequence[Path]
    training: Sequence[Sequence[Record]]
    promoted: Sequence[bool]
    attacks: Sequence[Sequence[Record]]
    validation: Sequence[Record]
    held_out: Sequence[Record]
    directory: Path

    def in_use(self, before: int | None = None) -> int:
        """Return the round of the guard that was promoted last, or that a round found in use."""
        return max(index for index, promoted in enumerate(self.promoted[:before]) if promoted)

    @property
    def seeds(self) -> list[Record]:
        """The seeds that no guard was trained on."""
        return [*self.validation, *self.held_out]

    def seeds_for(self, metric: Metric) -> tuple[list[Record], str]:
        """Return the seeds that no guard was trained on to measure with, and what to call them.

        Benign validation seeds are flagged as often as the thresholds set on them allow: false positives are those of
        the held-out seeds, where these are enough to tell.
        """
        if metric != "fpr":
            return self.seeds, "seeds never trained on"
        if sum(not record["unsafe"] for record in self.held_out) >= FEW:
            return list(self.held_out), "held-out seeds"
        return self.seeds, "seeds never trained on, the threshold's own among them"

    @property
    def unseen_attacks(self) -> list[Record]:
        """The attacks on goals that no guard was trained on, of all rounds, each text once."""
        goals = {record["id"] for record in self.held_out}
        found = {each["id"]: each for attacks in self.attacks for each in attacks if each["seed_id"] in goals}
        return list(found.values())


@dataclasses.dataclass(frozen=True)
class Measured:
    """A share of `n` texts in [0, 1] and its 95% interval; both None where there is no text."""

    what: str
    n: int
    value: float | None
    interval: list[float] | None


def measure(guard: Guard, records: Sequence[Record], metric: Metric, what: str) -> Measured:
    """Return a guard's recall (of the unsafe records), false-positive rate (of the benign) or how often it is wrong."""
    if metric != "success_rate":
        records = [record for record in records if record["unsafe"] == (metric == "recall")]
    wrong, n = len(misjudged(guard, records)), len(records)
    counted = n - wrong if metric == "recall" else wrong
    return Measured(what, n, counted / n if n else None, wilson(counted, n))


def row(name: str, metric: Metric, found: Measured, beside: Measured, note: str = "") -> Row:
    """Return a row of the report; without a note of its own it says where there are too few texts to tell."""
    few = min(found.n, beside.n)
    values = {"name": name, "metric": metric, **dataclasses.asdict(found), "beside": dataclasses.asdict(beside)}
    return {**values, "note": note or ("no such text" if not few else "too few to say" if few < FEW else "")}


# --- What training did not have -------------------------------------------------------------------------------------


def left_out_styles(run: FinishedRun, most: int, resources: Mapping[str, Any]) -> list[Row]:
    """Return what guards find that were trained without the attacks of a style, of the `most` frequent ones."""
    style_of = {attack["id"]: attack["style"] for attacks in run.attacks for attack in attacks}

    def styles(record: Record) -> list[str]:
        made = record["method"].split(":", 1)[0] == "rl"
        return [style_of[record["id"]]] if made and record["id"] in style_of else []

    return _left_out(run, "style", styles, most, resources)


def left_out_categories(run: FinishedRun, most: int, resources: Mapping[str, Any]) -> list[Row]:
    """Return what guards find that were trained without the records of a category, of the `most` frequent ones.

    Benign look-alikes of the category stay: they cannot be told from other benign records.
    """
    return _left_out(run, "category", lambda record: record["categories"] or [], most, resources)


def _left_out(
    run: FinishedRun,
    kind: str,
    groups: Callable[[Record], Sequence[str]],
    most: int,
    resources: Mapping[str, Any],
) -> list[Row]:
    """Return three rows for each of the groups that most of the unsafe records trained on are of.

    `groups` are those of a record. The run's guard was trained on what is left out, and may know it by heart: what
    neither guard was trained on tells more, where there is enough of it.
    """
    trained_on, in_use = run.training[run.in_use()], Guard.from_pretrained(run.guards[run.in_use()])
    unseen = [*run.seeds, *run.unseen_attacks]
    benign, called = run.seeds_for("fpr")
    sizes = Counter(group for record in trained_on if record["unsafe"] for group in groups(record))
    rows: list[Row] = []
    for group, _ in sorted(sizes.items(), key=lambda each: (-each[1], each[0]))[:most]:

        def is_left_out(record: Record, group: str = group) -> bool:
            return group in groups(record)

        lacking = _lacking_label(run, is_left_out)
        path = None if lacking else _trained_without(run, f"{kind}-{group}", is_left_out, resources)
        guard = path and Guard.from_pretrained(path)
        note = f"not trained: {lacking}" if lacking else ""
        made = [each.card.training for each in (guard, in_use) if each]
        if any(training.get("out_of_time") for training in made):
            note = "passes in the minutes they had: {:.2f}, the run's guard {:.2f}".format(*(m["epochs"] for m in made))
        parts: list[tuple[str, Metric, Sequence[Record]]] = [
            ("left out of training", "recall", [record for record in trained_on if is_left_out(record)]),
            (f"of the {kind}, on seeds never trained on", "recall", [each for each in unseen if is_left_out(each)]),
            (f"benign {called}", "fpr", benign),
        ]
        for what, metric, records in parts:
            found = measure(guard, records, metric, what) if guard else Measured(what, 0, None, None)
            beside = measure(in_use, records, metric, "the run's guard")
            rows.append(row(group, metric, found, beside, note))
    return rows


def _stages(run: FinishedRun, is_left_out: Callable[[Record], bool]) -> list[int]:
    """Return the rounds whose trainings lead to the guard in use and have to be made again."""
    last = run.in_use()
    if last == 0 or run.config.retrain_from == "base":
        return [last]
    return [0, last] if any(map(is_left_out, run.training[0])) else [last]


def _lacking_label(run: FinishedRun, is_left_out: Callable[[Record], bool]) -> str:
    """Return what is missing to train and calibrate without some records; empty if nothing is."""
    parts = {f"round {index}": run.training[index] for index in _stages(run, is_left_out)}
    for name, records in {**parts, "the validation seeds": run.validation}.items():
        labels = {record["unsafe"] for record in records if not is_left_out(record)}
        if labels != {True, False}:
            return f"{name} would be left without {'benign' if True in labels else 'unsafe'} records"
    return ""


def _trained_without(
    run: FinishedRun, name: str, is_left_out: Callable[[Record], bool], resources: Mapping[str, Any]
) -> Path:
    """Return the guard in use as it would have been without some records, trained unless it is there.

    The round-0 guard that it is trained further from has not seen them either.
    """
    name = re.sub(r"\W+", "-", name)
    stages = _stages(run, is_left_out)
    start = None if stages[0] == 0 or run.config.retrain_from == "base" else run.guards[0]
    for index in stages:
        output = run.directory / name / f"round-{index:02d}"
        if not (output / GUARD_FILE).is_file():
            data = output.with_name(f".{output.name}.records.parquet")
            write_records((record for record in run.training[index] if not is_left_out(record)), data)
            fine_tune(
                run.config,
                data=data,
                validation=[record for record in run.validation if not is_left_out(record)],
                output=output,
                version=f"without-{name}-{index:02d}",
                seed=run.seed + index,
                start=start,
                **resources,
            )
            data.unlink()
        start = output
    assert start is not None  # there is a stage
    return start


# --- What the guard in use meets ------------------------------------------------------------------------------------


def origin(run: FinishedRun) -> list[Row]:
    """Return what the guard in use finds, and flags, of text that the attacker wrote beside the seeds.

    Seeds stand for human text: they are as human as those who gave them.
    """
    guard = Guard.from_pretrained(run.guards[run.in_use()])
    rows: list[Row] = []
    for metric in METRICS:
        seeds, called = run.seeds_for(metric)
        human = [record for record in seeds if record["method"] == "seed"]
        synthetic = [record for record in seeds if record["method"] != "seed"] + run.unseen_attacks
        found = measure(guard, synthetic, metric, "attacks that kept their label, on goals never trained on")
        rows.append(row("synthetic", metric, found, measure(guard, human, metric, called)))
    return rows


def languages(run: FinishedRun, further: Sequence[Record]) -> list[Row]:
    """Return what the guard in use finds, and flags, in each language, beside English.

    Args:
        run: its seeds that no guard was trained on are read.
        further: labelled texts, of evaluation sets.

    A record's language is what it says, else what its text looks like. What the guard was trained on is left out.
    """
    guard = Guard.from_pretrained(run.guards[run.in_use()])
    trained_on = {record["id"] for record in run.training[run.in_use()]}
    by_language: dict[str, list[Record]] = {}
    for record in [*run.seeds, *further]:
        if record["id"] not in trained_on:
            by_language.setdefault(_language(record), []).append(record)
    rows: list[Row] = []
    for metric in METRICS:
        seeds, called = run.seeds_for(metric)
        counted = {record["id"] for record in [*seeds, *further]}
        own = {key: [each for each in of if each["id"] in counted] for key, of in by_language.items()}
        beside = measure(guard, own.pop(_ENGLISH, []), metric, "English")
        what = f"{called}, and other sets" if further else called
        for language, records in sorted(own.items(), key=lambda each: (-len(by_language[each[0]]), each[0])):
            rows.append(row(language, metric, measure(guard, records, metric, what), beside))
    return rows


def _language(record: Record) -> str:
    """Return the language of a record as ISO 639 code, without a region."""
    return declared_language(record["language"]) or detected(record["text"]) or _NOT_TOLD


def drift(run: FinishedRun) -> Iterator[Row]:
    """Yield how often the attacks of each round fool the guard of each round, beside the guard they were made against.

    Attacks that a guard was trained on stand apart from those on goals that none was; what curation dropped of the
    others is left out.
    """
    goals = {record["id"] for record in run.held_out}
    rounds = [index for index, attacks in enumerate(run.attacks) if attacks]
    attacked = {index: run.in_use(index) for index in rounds}
    guards = [Guard.from_pretrained(path) for path in run.guards]
    for newest, guard in enumerate(guards):
        trained_on = {record["id"] for record in run.training[newest]}
        for index in rounds:
            seen = [attack for attack in run.attacks[index] if attack["id"] in trained_on]
            unseen = [attack for attack in run.attacks[index] if attack["seed_id"] in goals]
            if index > newest:
                parts = {"attacks of a newer round": run.attacks[index]}
            else:
                parts = {"attacks that it was trained on": seen, "attacks on goals never trained on": unseen}
            for what, attacks in parts.items():
                beside = measure(guards[attacked[index]], attacks, "success_rate", f"guard {attacked[index]}")
                found = measure(guard, attacks, "success_rate", what)
                yield row(f"guard {newest}, attacks {index}", "success_rate", found, beside)

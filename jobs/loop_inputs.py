"""What the loop is given: seeds in their parts, texts beside them, and the sets that its guards are measured on.

What a later step could not use is refused here, before anything is made of it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from guardrail.evaluation_items import EvaluationItem
from guardrail.evaluation_sets import load_evaluations
from guardrail.fitted_on import fitted_on
from guardrail.generable import generation_seeds, without
from guardrail.records import Record, record_id
from guardrail.seeds import HELD_OUT, TRAIN, VALIDATION, embedded_texts, load_or_embedded, split_by_seed
from jobs.settings import LoopSettings

_SHORT_TEXT = 110  # characters


def measured_on(settings: LoopSettings) -> dict[str, list[EvaluationItem]]:
    """Return the sets that guards are measured on beside the seeds, by name.

    Raises:
        ValueError: one cannot be loaded, or is named as a part of the seeds is.
    """
    sets = load_evaluations(settings.evaluation, settings.data_dir)
    if taken := {VALIDATION, HELD_OUT} & sets.keys():
        raise ValueError(f"an evaluation set is named {min(taken)!r}, as a part of the seeds is; rename its file")
    return sets


def seed_parts(
    settings: LoopSettings, evaluation: Mapping[str, Sequence[EvaluationItem]]
) -> tuple[dict[str, list[Record]], int]:
    """Return the seeds by part (TRAIN, VALIDATION, HELD_OUT), and how many are left out as guards are measured on them.

    Raises:
        ValueError: seeds cannot be read, or a part lacks what a step needs of it.
        FittedOnEvaluationSet: the validation split comes from a registered evaluation set.
    """
    parts = split_by_seed(
        load_or_embedded(settings.seeds),
        validation=settings.split.validation,
        held_out=settings.split.held_out_goals,
    )
    left_out = _take_out_measured(parts, evaluation, settings.data_dir)
    _check_parts(
        parts,
        goals_of_both=settings.adversary.benign_share > 0,
        excluded=settings.curation.excluded_categories,
    )
    return parts, left_out


def texts_beside(settings: LoopSettings) -> list[Record]:
    """Return the embedded texts that guards are trained on; nothing grows from them, and no attacker has them."""
    if settings.seeds is not None or not settings.texts:
        return []
    # Ids are digests: their order is a draw from all files.
    return sorted(embedded_texts(), key=lambda each: (not _is_short(each), each["id"]))[: settings.texts]


def _take_out_measured(
    parts: dict[str, list[Record]], evaluation: Mapping[str, Sequence[EvaluationItem]], data_dir: Path | None
) -> int:
    """Take out of what sets thresholds, or decides on promotions, the texts of evaluation sets; return how many.

    Raises:
        FittedOnEvaluationSet: the validation split comes from a registered evaluation set.
    """
    known = {
        record_id(item.text, response)
        for items in evaluation.values()
        for item in items
        for response in {None, item.response}
    }
    before = sum(map(len, parts.values()))
    for name in (VALIDATION, HELD_OUT):
        parts[name] = [record for record in parts[name] if record["id"] not in known]
    ids, sources = ([record[key] for record in parts[VALIDATION]] for key in ("id", "source"))
    fitted_on("validation split", ids, sources, data_dir)
    return before - sum(map(len, parts.values()))


def _check_parts(parts: Mapping[str, list[Record]], *, goals_of_both: bool, excluded: Sequence[str] = ()) -> None:
    """Raise ValueError now, not an hour later, where a part of the seeds lacks what a step needs of it."""
    needed = {
        "to train on": (parts[TRAIN], {True, False}),
        f"in the {VALIDATION} split": (parts[VALIDATION], {True, False}),
        "to attack with": (
            generation_seeds(without(excluded, parts[TRAIN] + parts[HELD_OUT])),
            {True, False} if goals_of_both else {True},
        ),
    }
    for purpose, (records, labels) in needed.items():
        for label in labels - {each["unsafe"] for each in records}:
            kind = "unsafe" if label else "benign"
            raise ValueError(
                f"of {sum(map(len, parts.values()))} seeds, none {purpose} is {kind}. Seeds are split within each "
                "`source` and label: give more of them, or fewer different sources"
            )


def _is_short(record: Record) -> bool:
    return record["response"] is None and len(record["text"]) <= _SHORT_TEXT

"""Evaluation sets: registered data sets and files of evaluation items, several of them by name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guardrail.dataset_registry import registry
from guardrail.datasets import check_folder, registered_items
from guardrail.evaluation_items import EvaluationItem, read_evaluation_file
from guardrail.rows import did_you_mean
from guardrail.text import joined

ALL_SETS = "all"  # in the place of a set's name: every registered evaluation set


def load_evaluation(name_or_file: str | Path, data_dir: Path | None = None) -> list[EvaluationItem]:
    """Return the items of a registered set, or of a file in the evaluation format.

    Raises:
        ValueError: as `registered_items` or `read_evaluation_file`; or there is no such set or file.
    """
    name = str(name_or_file)
    if name in registry():
        return registered_items(name, data_dir)
    path = Path(name_or_file)
    if not path.suffix and not path.exists():
        raise ValueError(
            f"{name!r} is neither a file nor a registered data set{did_you_mean(name, registry())} "
            f"Registered: {', '.join(registry())}"
        )
    return read_evaluation_file(path)


def load_evaluations(names: Sequence[str | Path], data_dir: Path | None = None) -> dict[str, list[EvaluationItem]]:
    """Return several evaluation sets by name; a file goes by its name without suffix.

    Raises:
        ValueError: as `load_evaluation`; or two of them have one name.
    """
    sets: dict[str, list[EvaluationItem]] = {}
    for each in names:
        sets[_name_beside(sets, each)] = load_evaluation(each, data_dir)
    return sets


def load_available_evaluations(
    names: Sequence[str], data_dir: Path | None = None
) -> tuple[dict[str, list[EvaluationItem]], dict[str, str]]:
    """Return evaluation sets as `load_evaluations` does, where "all" stands for every registered one.

    Returns:
        The sets by name, and why those cannot be loaded that "all" alone asks for, by name.

    Raises:
        ValueError: as `load_evaluations`, of the sets that are named; or the data folder does not exist.
    """
    if data_dir is not None:
        check_folder(data_dir)
    sets = load_evaluations([name for name in names if name != ALL_SETS], data_dir)
    missing: dict[str, str] = {}
    if ALL_SETS in names:
        for name, entry in registry().items():
            if entry.use == "eval" and name not in names:
                name = _name_beside(sets, name)
                try:
                    sets[name] = load_evaluation(name, data_dir)
                except ValueError as error:
                    missing[name] = str(error)
    return sets, missing


def raise_missing(missing: Mapping[str, str], use: str) -> None:
    """Raise ValueError, with the reasons, if there are registered sets that could not be loaded for a use."""
    if missing:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in missing.items())
        raise ValueError(f"{len(missing)} of the registered sets could not be loaded, and are not {use}:{reasons}")


def _name_beside(sets: Mapping[str, Any], name_or_file: str | Path) -> str:
    name = Path(name_or_file).name.split(".", 1)[0]
    if name in sets:
        raise ValueError(f"two evaluation sets are named {name!r}; rename a file")
    return name


def evaluation_texts(sets: Mapping[str, Sequence[EvaluationItem]]) -> dict[str, list[tuple[str, str]]]:
    """Return (id, what a guard reads) of each item, and the prompt of a response alone: what training must not hold."""
    return {
        name: [
            (item.id, text)
            for item in items
            for text in (joined(item.text, item.response), *([] if item.response is None else [item.text]))
        ]
        for name, items in sets.items()
    }

"""What thresholds were fitted on: never a registered evaluation set, whose figures would then say nothing.

A set is known by its name: that of the file, or the column `source` of its records. Where there are local copies of
registered sets, it is known by its texts, too.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

from guardrail.dataset_registry import registry
from guardrail.datasets import local_copy, registered_items
from guardrail.records import record_id
from guardrail.text import digest

_PLACES_SHOWN = 10
_ANYBODYS = {"test", "eval"}  # names of files, whatever they hold


class FittedOnEvaluationSet(ValueError):
    """Thresholds were fitted, or shall be, on texts of a registered evaluation set."""


@dataclasses.dataclass(frozen=True)
class FittedOn:
    """The texts that thresholds were fitted on.

    Attributes:
        name: of the file or the split.
        n: how many texts.
        digest: of the ids of their canonical texts; equal for the same texts in any order.
        sources: what their records name as source, without what follows a colon.

    Raises:
        FittedOnEvaluationSet: the name or a source is that of a registered evaluation set.
    """

    name: str
    n: int
    digest: str
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in (self.name, *self.sources):
            if found := _evaluation_set(name):
                raise FittedOnEvaluationSet(
                    f"thresholds that were fitted on {name!r} are refused: {found} is an evaluation set, and a guard's "
                    "figures on it would say nothing; fit them on other texts"
                )


def fitted_on(name: str, ids: Sequence[str], sources: Iterable[str] = (), data_dir: Path | None = None) -> FittedOn:
    """Return the entry of texts on which thresholds are to be fitted.

    Args:
        name: of the file or the split.
        ids: of the texts, as `guardrail.records.record_id` has them.
        sources: that records name.
        data_dir: folder of local copies of registered sets; None: there are none.

    Raises:
        FittedOnEvaluationSet: the name or a source is that of a registered evaluation set, or texts are of one that has
            a local copy.
        ValueError: the folder, or a copy in it, cannot be read.
    """
    ordered = sorted(ids)
    entry = FittedOn(name, len(ids), digest(*ordered), tuple(sorted({each.partition(":")[0] for each in sources})))
    if data_dir is not None:
        _refuse_evaluation_texts(ids, name, data_dir)
    return entry


def _refuse_evaluation_texts(ids: Sequence[str], name: str, data_dir: Path) -> None:
    for of_set, entry in registry().items():
        if entry.use != "eval" or local_copy(of_set, entry, data_dir) is None:
            continue
        items = registered_items(of_set, data_dir)
        known = {record_id(item.text) for item in items} | {record_id(item.text, item.response) for item in items}
        places = [str(place) for place, own in enumerate(ids, 1) if own in known]
        if places:
            more = ", ..." if len(places) > _PLACES_SHOWN else ""
            raise FittedOnEvaluationSet(
                f"{len(places)} texts of {name} are of the evaluation set {of_set}, on which no threshold may be "
                f"fitted; remove number {', '.join(places[:_PLACES_SHOWN])}{more}"
            )


def _evaluation_set(name: str) -> str | None:
    """Return the registered evaluation set that a name or a file's name is of; None if there is none."""
    return _evaluation_sets().get(_stem(name))


def _stem(name: str) -> str:
    return Path(name).name.split(".", 1)[0].casefold().replace("_", "-")


@functools.cache
def _evaluation_sets() -> dict[str, str]:
    """Return the registered evaluation sets by their names and those of their files."""
    of_eval = {name: entry for name, entry in registry().items() if entry.use == "eval"}
    shared = {_stem(file) for entry in registry().values() if entry.use != "eval" for file in entry.files}
    files = {_stem(file): name for name, entry in of_eval.items() for file in entry.files}
    return {stem: name for stem, name in files.items() if stem not in shared | _ANYBODYS} | {n: n for n in of_eval}

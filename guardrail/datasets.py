"""Public data sets by name: the generic reader that turns any registered set into ours.

It finds a local copy or asks the hub, and returns records or evaluation items. It ships no data, and no message of it
quotes a text: public sets are full of harmful language.
"""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from guardrail.dataset_registry import DatasetEntry, Hub, Row, first_filled, registry_entry
from guardrail.evaluation_items import EvaluationItem
from guardrail.records import make_record
from guardrail.rows import SourceRow, read_rows, text_problem
from guardrail.seeds import LabelledRow

logger = logging.getLogger(__name__)

_MOST_BROKEN = 0.05  # of a set's rows; where more are, it is another file than the registry describes
LOCAL_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".jsonl.gz", ".parquet")  # looked for after a set's own file names
HUB_TIMEOUT_S = 5.0


def registered_rows(name: str, data_dir: Path | None = None) -> Iterator[LabelledRow]:
    """Yield the rows of a registered set as records, broken ones among them: of a local copy in `data_dir`, or the hub.

    Rows that their set leaves undecided, or that have no text, are dropped; duplicates stay, for curation to find. The
    caller decides what to do with `registry()[name].use`.

    Raises:
        ValueError: the name is unknown, the set cannot be found or fetched; or, after its rows, it is not what the
            registry describes: many are broken.
    """
    entry = registry_entry(name)
    for number, where, item in _labelled(name, entry, data_dir, _MOST_BROKEN):
        if isinstance(item, str):
            yield LabelledRow(number, where, None, (item,))
            continue
        record = make_record(
            item.text,
            unsafe=item.unsafe,
            source=name,
            categories=item.categories,
            response=item.response,
            licence=entry.licence,
            language=entry.language,
        )
        yield LabelledRow(number, where, record)


def registered_items(name: str, data_dir: Path | None) -> list[EvaluationItem]:
    """Return the labelled rows of a registered set; ids are the name and the number of the row in its source.

    Raises:
        ValueError: as `registered_rows`, and where a single row is broken.
    """
    # What is measured on a part of a set is not what others measured on it: no row may be broken.
    labelled = _labelled(name, registry_entry(name), data_dir, 0)
    return [item for _, _, item in labelled if isinstance(item, EvaluationItem)]


def _labelled(
    name: str, entry: DatasetEntry, data_dir: Path | None, most_broken: float
) -> Iterator[tuple[int, str, EvaluationItem | str]]:
    """Yield number and place of a set's rows, each with its item, or with what is wrong with it.

    Raises:
        ValueError: as `registered_rows`; many are more than the share `most_broken`.
    """
    origin, rows = _source(name, entry, data_dir)
    number = labelled = broken = unanswered = 0
    first = ""  # broken row, and why it is
    for number, row in enumerate(rows, 1):
        try:
            if row.problem:
                raise ValueError(row.problem)
            item = _item(f"{name}-{number}", entry, row.values)
        except ValueError as error:
            broken += 1
            first = first or f"{row.where}: {error}"
            yield number, row.where, str(error)
            continue
        if item is not None:
            labelled += 1
            yield number, row.where, item
        elif entry.response and first_filled(row.values, (entry.response,)) is None:
            unanswered += 1
    if broken > most_broken * number:
        more = f" (and {broken - 1} more of {number} rows)" if broken > 1 else ""
        raise ValueError(f"data set {name!r}: {origin}, {first}{more}. Is it the file of {entry.url}?")
    if not labelled:
        raise ValueError(f"data set {name!r}: {origin} holds no labelled row. Is it the file of {entry.url}?")
    if unanswered:
        logger.warning("%s: %d of %d rows have no response, and are left out", name, unanswered, number)
    logger.info("%s: %d of %d rows from %s are labelled and have a text", name, labelled, number, origin)


def _item(item_id: str, entry: DatasetEntry, row: Row) -> EvaluationItem | None:
    """Return the item of one row, or None if it has no text or its set leaves it undecided."""
    request = first_filled(row, entry.text)
    unsafe = entry.label.unsafe(row)
    response = None if entry.response is None else first_filled(row, (entry.response,))
    if request is None or unsafe is None or request in entry.drop_texts or (entry.response and response is None):
        return None
    around = [row.get(column) if column else None for column in (entry.before, entry.after)]
    parts = [part for part in (around[0], request, around[1]) if part is not None and part != ""]
    text = "\n\n".join(parts) if all(isinstance(part, str) for part in parts) else None
    if problem := text_problem(text):
        raise ValueError(f"column {' or '.join(entry.text)!r} {problem}")
    assert text is not None  # text_problem is not empty for None
    if entry.categories is not None:
        categories = entry.categories.categories(row, unsafe)
    else:
        categories = None if unsafe else []
    tags = list(dict.fromkeys(tag for column in entry.tags for tag in column.tags(row))) if entry.tags else None
    return EvaluationItem(item_id, text, response, unsafe, categories, tags)


def _source(name: str, entry: DatasetEntry, data_dir: Path | None) -> tuple[str, Iterable[SourceRow]]:
    """Return what to call the source, and its rows."""
    tried = "no data folder was given (--data-dir)"
    candidates = _candidates(name, entry)
    if data_dir is not None:
        if copy := local_copy(name, entry, data_dir):
            return str(copy), read_rows(copy, levels=entry.levels)
        tried = f"{data_dir}, {data_dir / 'train'} and {data_dir / 'eval'} hold none of {', '.join(candidates)}"
    if entry.hub is None:
        tried += "; it is not on the hub"
    else:
        try:
            return f"{entry.hub.id} on the hub", _hub_rows(entry.hub)
        except Exception as error:  # noqa: BLE001 - the hub's client raises a dozen kinds, of several libraries
            reason = str(error).strip().split("\n")[0][:200]
            tried += f"; the hub gave no {entry.hub.id} ({type(error).__name__}: {reason})"
    gated = " (gated: log in and accept its terms first)" if entry.hub and entry.hub.gated else ""
    raise ValueError(
        f"cannot load the data set {name!r}: {tried}. Download it from {entry.url}{gated}, put the file as "
        f"{candidates[0]} under a folder DIR, and pass --data-dir DIR."
    )


def local_copy(name: str, entry: DatasetEntry, data_dir: Path) -> Path | None:
    """Return the local copy of a registered set, None if there is none.

    Raises:
        ValueError: the data folder does not exist.
    """
    check_folder(data_dir)
    folders = (data_dir, data_dir / "train", data_dir / "eval")
    paths = (folder / candidate for folder in folders for candidate in _candidates(name, entry))
    return next((path for path in paths if path.is_file()), None)


def _candidates(name: str, entry: DatasetEntry) -> list[str]:
    stems = dict.fromkeys((name, name.replace("-", "_")))
    return [*entry.files, *(stem + suffix for stem in stems for suffix in LOCAL_SUFFIXES)]


def check_folder(data_dir: Path) -> None:
    """Raise ValueError if the data folder does not exist."""
    if not data_dir.is_dir():
        raise ValueError(f"the data folder {data_dir} does not exist")


def _hub_rows(hub: Hub) -> Iterable[SourceRow]:
    """Return the rows of a set on the hub, downloaded or from its cache; raises whatever the hub's client raises."""
    from huggingface_hub import HfApi, constants

    if not constants.HF_HUB_OFFLINE:
        # load_dataset retries for half a minute before it gives up on a network that is not there: ask once, briefly.
        HfApi().dataset_info(hub.id, revision=hub.revision, timeout=HUB_TIMEOUT_S)
    import datasets

    rows = datasets.load_dataset(hub.id, hub.config, split=hub.split, revision=hub.revision, **hub.options)
    return (SourceRow(f"row {number}", dict(row)) for number, row in enumerate(rows, 1))

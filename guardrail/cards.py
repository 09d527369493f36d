"""The model card and the data card of a guard, from its manifest, its records and its figures.

Both are Markdown in the guard directory: README.md, with the front matter that model hubs read, and DATA.md. What is
not known or was not measured is said to be so. No text of a record is in them.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import pyarrow.parquet as pq
import yaml

from guardrail.dataset_registry import registry
from guardrail.files import write_text
from guardrail.guard_card import GuardCard
from guardrail.metrics import wilson
from guardrail.models import BUNDLED_PREFIX
from guardrail.records import Record
from guardrail.seeds import VALIDATION
from guardrail.taxonomy import CATEGORIES, NEVER_GENERATED, UNSAFE

MODEL_CARD, DATA_CARD = "README.md", "DATA.md"
#: Where curation notes which evaluation sets it kept out of the records, and how many texts each has.
KEPT_OUT = "kept_out.json"
FEW = 20  #: texts; of fewer, a share has an interval of up to 0.4 and more, and no failure is claimed
MIN_RECALL = 0.8  #: below it, a set, tag or category is a known failure

_MOST_SOURCES = 100  # of which each is listed; of more, the topics of a source ("source:topic") are told together
_MOST_FEW = 20  # parts of sets that are named although nothing can be said of them
_SHOWN = ("f1", "precision", "recall", "fpr", "auprc")
_HUB_METRICS = {"f1": "f1", "precision": "precision", "recall": "recall", "auprc": "average_precision"}
_HUB_IDS = {
    "bundled:all-minilm-l6-v2": "sentence-transformers/all-MiniLM-L6-v2",
    "bundled:smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "bundled:all-mpnet-base-v2": "sentence-transformers/all-mpnet-base-v2",
}
_VERSIONED = ("rayguard", "ray", "torch", "transformers")
_MARKUP = re.compile(r"^(\d*)(?=[-+=.)])|(?=[\\`*_{}\[\]<>#|&~$!])")


@dataclass(frozen=True)
class Provenance:
    """What the cards tell of a guard beside what its directory holds.

    Attributes:
        records: those it was trained on.
        metrics: by name of a set, as `evaluate_set` returns them.
        commands: train it again, in this order.
        config_digest: of the resolved settings.
        ledgers: of the curation behind the records, a round after the other; empty: not known.
        kept_out: the sets that the curation kept out of the records, by name, and how many texts each has; None: they
            are not known.
        attacks: how many stored attacks it was tried on, and the share that fools it; None: on none.
    """

    records: Sequence[Record]
    metrics: Mapping[str, Mapping[str, Any]]
    commands: Sequence[str]
    config_digest: str
    ledgers: Sequence[Path] = field(default=())
    kept_out: Mapping[str, int] | None = None
    attacks: tuple[int, float] | None = None


@dataclass(frozen=True)
class Share:
    """A share in [0, 1] of `n` texts and its 95% interval: "recall" or "fpr" on a set or a part of it."""

    where: str
    metric: str
    n: int
    value: float
    interval: Sequence[float]


def named_in_cards(path: Path) -> str:
    """Return a path as cards name it: from the working directory where it is in there, else by its name alone."""
    path, here = path.resolve(), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else path.name


def write_cards(directory: Path, provenance: Provenance) -> None:
    """Write README.md and DATA.md into a guard directory; its digest stays what it is.

    Raises:
        ValueError: it is no guard directory.
        OSError: a ledger cannot be read, or a card not be written.
    """
    card = GuardCard.read(directory)
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"text": plain_text, "number": _number}
    facts = {"card": card, "of": provenance, "licences": _counts(r["licence"] for r in provenance.records)}
    for name, template, more in (
        (MODEL_CARD, "model_card.md.j2", _model_facts(card, provenance)),
        (DATA_CARD, "data_card.md.j2", _data_facts(provenance)),
    ):
        source = files("guardrail").joinpath(template).read_text("utf-8")
        write_text(directory / name, environment.from_string(source).render(**facts, **more) + "\n")


def plain_text(value: object) -> str:
    """Return a text as one line of Markdown that shows it letter by letter, in a table as well."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    return _MARKUP.sub(r"\1\\", line)


# --- The model card -------------------------------------------------------------------------------------------------


def _model_facts(card: GuardCard, provenance: Provenance) -> dict[str, Any]:
    shares = list(measured_shares(provenance.metrics))
    max_fpr = card.training["config"]["max_fpr"]
    beyond = [s for s in shares if s.n >= FEW and (s.value < MIN_RECALL if s.metric == "recall" else s.value > max_fpr)]
    return {
        "front_matter": yaml.safe_dump(front_matter(card, provenance), sort_keys=False),
        "base": _base(card),
        "layers": card.training["config"].get("layers"),  # guards of before this setting lack it
        "threshold": card.thresholds[UNSAFE],
        "figures": [
            (name, values["n"], values["positives"], [(values[key], _interval(values, key)) for key in _SHOWN])
            for name, values in provenance.metrics.items()
        ],
        "not_kept_out": [
            name
            for name in provenance.metrics
            if name not in (provenance.kept_out or {}) and name.split(",")[0] != VALIDATION
        ],
        "failures": beyond,
        "few": [s for s in shares if s.n < FEW],
        "most_few": _MOST_FEW,
        "calibration": _calibration_errors(card),
        "category_recall": _category_recall(card),
        "bounds": {"recall": MIN_RECALL, "fpr": max_fpr, "few": FEW},
        "unmeasured": unmeasured(provenance),
        "versions": {name: found for name in _VERSIONED if (found := _version(name))},
        "attack_interval": provenance.attacks
        and wilson(round(provenance.attacks[0] * provenance.attacks[1]), provenance.attacks[0]),
    }


def _calibration_errors(card: GuardCard) -> tuple[float | None, float | None, float | None]:
    """Return the calibration error before temperature, after it, and of each half of the split by that of the other."""
    validation = card.training["validation"]
    before, after = (validation["calibration"][name]["ece"] for name in ("before", "after"))
    return before, after, (validation.get("cross_fitted") or {}).get("ece")


def _category_recall(card: GuardCard) -> list[tuple[str, int, float]]:
    """Return category, texts that have it and its recall, of those with a threshold, which was set on these texts."""
    found = card.training["validation"]["categories"]
    return [(key, each["positives"], each["recall"]) for key, each in found.items() if each["threshold"] is not None]


def front_matter(card: GuardCard, provenance: Provenance) -> dict[str, Any]:
    """Return the metadata that model hubs read from the head of a model card.

    The licence is Apache-2.0 where the base and all records have it; else that of the parts, which DATA.md lists.
    """
    hub_id = _HUB_IDS.get(card.training["base"])
    free = hub_id is not None and all(record["licence"] == "Apache-2.0" for record in provenance.records)
    licence = {"license": "apache-2.0"} if free else {"license": "other", "license_name": "see-data-card"}
    if not free:
        licence["license_link"] = DATA_CARD
    base = hub_id or (_base(card) if "/" in _base(card) else None)
    results = [
        {
            "task": {"type": "text-classification"},
            "dataset": {"name": name, "type": _hub_set(name) or name},
            "metrics": [
                {"type": kind, "value": round(values[key], 4)}
                for key, kind in _HUB_METRICS.items()
                if values[key] is not None
            ],
        }
        for name, values in provenance.metrics.items()
    ]
    results = [result for result in results if result["metrics"]]
    sets = sorted({hub for record in provenance.records if (hub := _hub_set(record["source"]))})
    languages = sorted({record["language"] for record in provenance.records} - {None})
    return {
        **licence,
        **({"language": languages} if languages else {}),
        **({"base_model": base} if base else {}),
        "pipeline_tag": "text-classification",
        "library_name": "transformers",
        "tags": ["rayguard", "guardrail", "moderation", "safety"],
        **({"datasets": sets} if sets else {}),
        **({"metrics": list(_HUB_METRICS.values())} if results else {}),
        **({"model-index": [{"name": card.version, "results": results}]} if results else {}),
    }


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:  # as rayguard is where it is run from its sources
        return None


def _base(card: GuardCard) -> str:
    """Return what a guard was trained from: a bundled model, a hub id, or the last part of a directory's name."""
    base: str = card.training["base"]
    is_hub_id = base.count("/") == 1 and not base.startswith((".", "/", "~"))
    return base if base.startswith(BUNDLED_PREFIX) or is_hub_id else Path(base).name


def _hub_set(name: str) -> str | None:
    """Return the hub id of a registered set."""
    entry = registry().get(name)
    return entry.hub.id if entry and entry.hub else None


def measured_shares(metrics: Mapping[str, Mapping[str, Any]]) -> Iterator[Share]:
    """Yield recall and false-positive rate of each set, and of its parts that were measured: tags, what transforms
    have written anew, categories.
    """
    for name, values in metrics.items():
        parts = {name: values, **{f"{name}, tag {tag}": own for tag, own in values.get("tags", {}).items()}}
        for transform, own in values.get("transforms", {}).items():
            parts[f"{name}, written anew by {transform}"] = own | {"n": own["positives"] + own["negatives"]}
        for where, own in parts.items():
            for metric, n in (("recall", own["positives"]), ("fpr", own["n"] - own["positives"])):
                if n:
                    yield Share(where, metric, n, own[metric], _interval(own, metric) or ())
        for key, own in values.get("categories", {}).items():
            yield Share(f"{name}, category {key}", "recall", own["count"], own["recall"], own["intervals"]["recall"])


def _interval(values: Mapping[str, Any], metric: str) -> Sequence[float] | None:
    """Return a metric's interval: the one it was measured with; else Wilson's, which shares alone have."""
    if "intervals" in values:
        interval: Sequence[float] | None = values["intervals"][metric]
        return interval
    positives, negatives = values["positives"], values["n"] - values["positives"]
    hits = round((values["recall"] or 0) * positives)
    alarms = round((values["fpr"] or 0) * negatives)
    of = {"recall": (hits, positives), "fpr": (alarms, negatives), "precision": (hits, hits + alarms)}
    return wilson(*of[metric]) if metric in of and values[metric] is not None else None


def unmeasured(provenance: Provenance) -> list[str]:
    """Return what the figures do not tell of a guard."""
    metrics = provenance.metrics.values()
    found = []
    if not any("categories" in values for values in metrics):
        found.append("recall by harm category")
    elif missing := [key for key in CATEGORIES if not any(key in values.get("categories", {}) for values in metrics)]:
        found.append(f"the categories {', '.join(missing)}: no set has a text of them")
    if provenance.attacks is None:
        found.append("attacks")
    if not any(values.get("transforms") for values in metrics):
        found.append("texts that encodings, lookalikes, typing errors or wrappers disguise")
    if not any(name in registry() for name in provenance.metrics):
        found.append("public evaluation sets")
    if not any(tag.startswith("language:") for values in metrics for tag in values.get("tags", {})):
        found.append("recall by language")
    return found


# --- The data card --------------------------------------------------------------------------------------------------


def _data_facts(provenance: Provenance) -> dict[str, Any]:
    records = provenance.records
    sources = {record["source"] for record in records}
    compositions: dict[tuple[str, str, str], Counter[bool]] = {}
    for record in records:
        method = record["method"].split(":", 1)[0]  # the transforms together
        source = record["source"].partition(":")[0] if len(sources) > _MOST_SOURCES else record["source"]
        key = source, method, record["licence"] or "not told"
        compositions.setdefault(key, Counter())[record["unsafe"]] += 1
    excluded = [record for record in records if NEVER_GENERATED.intersection(record["categories"] or ())]
    return {
        "compositions": [(*key, counts[True], counts[False]) for key, counts in sorted(compositions.items())],
        "unsafe": sum(record["unsafe"] for record in records),
        "answered": sum(record["response"] is not None for record in records),
        "seeds": len({record["seed_id"] for record in records}),
        "public": {name: registry()[name] for name in sorted(sources & registry().keys())},
        "languages": _counts(record["language"] for record in records),
        "categories": _counts(key for record in records for key in record["categories"] or ()),
        "unknown_categories": sum(record["unsafe"] and record["categories"] is None for record in records),
        "dropped": sorted(_dropped(provenance.ledgers).items()),
        "never_generated": sorted(NEVER_GENERATED),
        "has_texts": any(source.startswith("rayguard-texts:") for source in sources),
        "excluded": len(excluded),
        "excluded_generated": sum(record["method"] != "seed" for record in excluded),
    }


def _counts(values: Iterator[str | None]) -> dict[str | None, int]:
    """Return how often there is each value, the most frequent first; None: not told."""
    return dict(sorted(Counter(values).items(), key=lambda each: (-each[1], str(each[0]))))


def _dropped(ledgers: Sequence[Path]) -> Counter[tuple[str, str]]:
    """Return how many records each stage of curation dropped, by stage and reason."""
    found: Counter[tuple[str, str]] = Counter()
    for index, path in enumerate(ledgers):
        columns = pq.read_table(path, columns=["stage", "reason", "method"]).to_pydict()
        for stage, reason, method in zip(*columns.values(), strict=True):
            if index == 0 or method != "seed":  # later rounds curate what is new beside the seeds, which are kept
                found[stage, reason] += 1
    return found


def _number(value: float | None, interval: Sequence[float] | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")

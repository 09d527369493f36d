"""Published numbers of other guards: what `published_results.yaml` holds, one number at a time."""

import functools
from importlib import resources
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict

Metric = Literal["f1", "precision", "recall", "fpr", "auprc", "auroc", "recall_at_1pct_fpr"]


class _Declared(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Declared):
    """A paper or report, and where in it the numbers are."""

    title: str
    url: str


class PublishedGuard(_Declared):
    """What one source says of one guard; the fields are explained at the head of the file."""

    guard: str
    size: str
    source: str
    reported_by: Literal["makers", "others"]
    threshold: Literal["own", "best"]
    results: dict[str, dict[Metric, float]]


class PublishedResults(_Declared):
    """The contents of the file."""

    sets: dict[str, str]  #: in what a set of the papers is another than the registered one
    sources: dict[str, Source]
    guards: tuple[PublishedGuard, ...]


@functools.cache
def published_results() -> PublishedResults:
    """Return all that is published, as the file has it."""
    text = resources.files("guardrail").joinpath("published_results.yaml").read_text("utf-8")
    return PublishedResults.model_validate(yaml.safe_load(text))


def published_on(name: str) -> list[dict[str, Any]]:
    """Return the published numbers on a registered set, one entry for each guard and source.

    An entry has guard, size, the metrics (shares, by name), threshold, reported_by, the source's title and url, and
    `set`: in what the source's set is another than the registered one; None: in nothing that is known.
    """
    known = published_results()
    return [
        {
            **entry.model_dump(exclude={"results"}),
            "metrics": entry.results[name],
            "source": known.sources[entry.source].model_dump(),
            "set": known.sets.get(name),
        }
        for entry in known.guards
        if name in entry.results
    ]

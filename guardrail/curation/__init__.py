"""Curation: which records are kept, and for each of the others the stage, the reason and the evidence."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guardrail.curation.config import CurationConfig
    from guardrail.curation.pipeline import CurationReport, curate

__all__ = ["CurationConfig", "CurationReport", "curate"]


def __getattr__(name: str) -> Any:
    # Not before it is asked for: workers import single stages, and need not load what the models of all others need.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from guardrail.curation import config, pipeline

    return getattr(config if name == "CurationConfig" else pipeline, name)

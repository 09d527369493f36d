"""Curation: which records are kept, and for each of the others the stage, the reason and the evidence."""

from guardrail.curation.config import CurationConfig
from guardrail.curation.pipeline import CurationReport, curate

__all__ = ["CurationConfig", "CurationReport", "curate"]

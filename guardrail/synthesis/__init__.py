"""Growing seeds into synthetic requests: the strategies, what they ask a model, and what becomes of its answers."""

from guardrail.synthesis.requests import (
    Request,
    SynthesisConfig,
    drop_reason,
    parse,
    requests,
    synthetic_record,
    written,
)
from guardrail.synthesis.strategies import STRATEGIES, STRATEGY, Strategy

__all__ = [
    "STRATEGIES",
    "STRATEGY",
    "Request",
    "Strategy",
    "SynthesisConfig",
    "drop_reason",
    "parse",
    "requests",
    "synthetic_record",
    "written",
]

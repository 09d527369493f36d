"""Goals and settings of an adversary on a random two-layer model."""

from pathlib import Path

from actors.config import AdversaryConfig, GateConfig
from guardrail.records import make_record
from tests.tiny_llama import tiny_llama

GOALS = [
    *(make_record(f"How do I steal {what}?", unsafe=True, source="a", categories=["illicit"]) for what in "abcdef"),
    *(make_record(f"How do I bake {what}?", unsafe=False, source="b", categories=[]) for what in "abcdef"),
]


def tiny_settings(directory: Path) -> AdversaryConfig:
    """Return settings with a gate as wide as it goes: a random model writes at random."""
    return AdversaryConfig(
        model=str(tiny_llama(directory)),
        iterations=2,
        groups=6,
        group_size=4,
        max_prompt_tokens=700,
        max_new_tokens=128,  # a line of a random model ends by chance
        temperature=0.9,
        trainable_layers=1,
        warm_start=0,
        learning_rate=1e-3,
        minibatch=2,
        gate=GateConfig(min_intent=0.0, min_similarity=-1.0, min_fluency=-1000, max_words=200),
    )

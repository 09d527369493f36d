"""Teach an attacker to rewrite: fine-tune it on rewritings that keep their goal's intent, before any reward.

python jobs/teach_attacker.py --output attacker/ [--teaching.model NAME --teaching.epochs 3 ...]

The loop, or a red-teaming, then starts from it: --adversary.model attacker/
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import Field

from actors.config import GateConfig
from actors.demonstrations import TeachingConfig, demonstrations, passing, teach
from guardrail.intent import IntentModel
from jobs.settings import SeedSettings, load, save_beside
from jobs.terminal import orderly_end

_LINES = 10  # of progress


class TeachAttackerSettings(SeedSettings):
    """Settings of the teaching."""

    output: Path = Field(description="directory to write the attacker to")
    gate: GateConfig = GateConfig()
    teaching: TeachingConfig = TeachingConfig()


def main(arguments: Sequence[str]) -> None:
    """Write the attacker."""
    settings = load(TeachAttackerSettings, arguments, __doc__)

    def after_step(done: int, steps: int, loss: float) -> None:
        if done % max(1, steps // _LINES) == 0:
            print(f"step {done} of {steps}, loss {loss:.3f}", flush=True)

    torch.set_num_threads(os.cpu_count() or 1)
    with orderly_end():
        shown = passing(demonstrations(), settings.gate, IntentModel.from_pretrained(settings.gate.intent_model))
        print(f"{len(shown)} of {len(demonstrations())} demonstrations pass the gate")
        teach(shown, settings.teaching, settings.output, settings.seed, after_step)
    save_beside(settings, settings.output / "attacker")


if __name__ == "__main__":
    main(sys.argv[1:])

"""Train the intent-consistency model, the adversary's label gate, and measure it beside the rules it replaces.

python jobs/train_intent.py --output guardrail/intent_model [--pairs more.jsonl ...] [--measure_only true]
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from guardrail.intent import CARD_FILE, IntentCard, IntentModel
from guardrail.intent_pairs import HELD_OUT_FILES, Pair, all_training_pairs, embedded_pairs, is_held_out, read_pairs
from guardrail.intent_training import (
    IntentTrainingConfig,
    measured,
    precision_at_recall,
    rule_scores,
    train_intent,
    write_card,
)
from guardrail.seeds import embedded_seeds
from jobs.settings import SeedSettings, load, save_beside
from jobs.terminal import orderly_end


class TrainIntentSettings(SeedSettings):
    """Settings of the intent model's training."""

    output: Path = Field(description="directory to write; or, with measure_only, to read")
    pairs: list[Path] = Field([], description="JSON lines of more pairs to train on, beside the embedded ones")
    measure_only: bool = Field(False, description="measure the model in `output` instead of training one")
    training: IntentTrainingConfig = IntentTrainingConfig()


def compared(model: IntentModel, pairs: Sequence[Pair], embedder: str) -> dict[str, float]:
    """Return what model and rules reach on pairs; the rules' precision is at the model's recall."""
    kept = np.array([pair.kept for pair in pairs])
    scores = model.kept_probability([p.goal for p in pairs], [p.attack for p in pairs], floored=True)
    rules = rule_scores(pairs, embedder)
    own = measured(scores, kept, model.limits.min_intent)
    return {
        "pairs": len(pairs),
        "kept": int(kept.sum()),
        **{name: round(value, 4) for name, value in own.items()},
        "rules_precision": round(precision_at_recall(rules, kept, own["recall"]), 4),
        "rules_precision_at_recall_0.5": round(precision_at_recall(rules, kept, 0.5), 4),
    }


def main(arguments: Sequence[str]) -> None:
    """Write the model, and print what it and the rules reach on the held-out pairs."""
    settings = load(TrainIntentSettings, arguments, __doc__)
    with orderly_end():
        if settings.measure_only:
            model = IntentModel.from_pretrained(str(settings.output))
        else:
            own = [pair for path in settings.pairs for pair in read_pairs(path) if not is_held_out(pair.goal)]
            pairs = [*all_training_pairs(embedded_seeds()), *own]
            model = train_intent(settings.training, pairs, settings.output, settings.seed, print)
            save_beside(settings, settings.output / "intent")
        figures = {
            name.removesuffix(".jsonl"): compared(model, embedded_pairs(name), settings.training.base)
            for name in HELD_OUT_FILES
        }
    print(f"threshold {model.limits.min_intent:.3f}")
    for name, values in figures.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in values.items()))
    if not settings.measure_only:
        card = IntentCard(**json.loads((settings.output / CARD_FILE).read_text()))
        write_card(settings.output, dataclasses.replace(card, figures={**card.figures, **figures}))


if __name__ == "__main__":
    main(sys.argv[1:])

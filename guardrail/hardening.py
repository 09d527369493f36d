"""What attacks still do to guards: the first and the final one side by side, and each round's guard on each round's."""

from collections.abc import Mapping, Sequence, Set
from typing import Any

from guardrail.records import Record
from guardrail.seeds import HELD_OUT, VALIDATION


def hardening(
    attacks: Sequence[Record],
    fooled: Sequence[Set[str]],
    evaluations: Sequence[Mapping[str, Mapping[str, Any]]],
    *,
    final: int,
    held_out: Set[str],
) -> dict[str, Any]:
    """Return how the round-0 and the final guard compare, and how many attacks of each round fool each guard.

    Args:
        attacks: the stored attacks of all rounds.
        fooled: of each round's guard, the ids of those it gets wrong.
        evaluations: of each round's guard, its metrics by set.
        final: round of the final guard.
        held_out: ids of the goals never trained on.
    """

    def compared(own: Sequence[Record], split: str) -> dict[str, Any]:
        result: dict[str, Any] = {"stored_attacks": len(own)}
        for name, index in (("round0", 0), ("final", final)):
            successes = sum(attack["id"] in fooled[index] for attack in own)
            result[f"success_rate_{name}_guard"] = successes / len(own) if own else None
            result[f"benign_fpr_{name}_guard"] = evaluations[index].get(split, {}).get("fpr")
        return result

    by_round = [{attack["id"] for attack in attacks if attack["round"] == index} for index in range(1, len(fooled))]
    return {
        **compared(attacks, VALIDATION),
        "held_out_goals": compared([attack for attack in attacks if attack["seed_id"] in held_out], HELD_OUT),
        "by_round": {
            "stored_attacks": [len(ids) for ids in by_round],
            "successes": [[len(ids & of_guard) for ids in by_round] for of_guard in fooled],
        },
    }

"""Attacks are counted by guard and by round, and those on held-out goals apart."""

from guardrail.hardening import hardening
from guardrail.records import make_record


def test_attacks_are_counted_by_guard_and_round():
    goals = [make_record(f"goal {i}", unsafe=True, source="s") for i in range(2)]
    attacks = [
        make_record(f"attack {i}", unsafe=True, source="s", parent=goals[i % 2], round=1 + i // 2) for i in range(4)
    ]
    ids = [attack["id"] for attack in attacks]
    evaluations = [{"validation": {"fpr": 0.1}}, {"validation": {"fpr": 0.2}}, {"validation": {"fpr": 0.3}}]
    fooled = [set(ids), {ids[1], ids[2]}, {ids[3]}]
    found = hardening(attacks, fooled, evaluations, final=1, held_out={goals[1]["id"]})
    assert found["by_round"] == {"stored_attacks": [2, 2], "successes": [[2, 2], [1, 1], [0, 1]]}
    assert (found["stored_attacks"], found["success_rate_round0_guard"], found["success_rate_final_guard"]) == (
        4,
        1,
        0.5,
    )
    assert (found["benign_fpr_round0_guard"], found["benign_fpr_final_guard"]) == (0.1, 0.2)
    held_out = found["held_out_goals"]
    assert (held_out["stored_attacks"], held_out["success_rate_final_guard"]) == (2, 0.5)
    assert held_out["benign_fpr_final_guard"] is None  # there is no such split
    assert hardening([], [set()], evaluations[:1], final=0, held_out=set())["by_round"]["successes"] == [[]]

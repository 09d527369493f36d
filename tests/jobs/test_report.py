"""The report's page and its errors; what `report.json` holds of a real run is tested with the loop."""

import pytest

from guardrail.report import render
from jobs.report import main, summary

METRICS = {"n": 2, "f1": 0.5, "precision": None, "recall": 1.0, "fpr": 0.0, "auprc": 0.9, "ece": 0.1}
NO_ATTACKS = {
    "attempts": 0,
    "valid": 0,
    "successes": 0,
    "success_rate": None,
    "interval": None,
    "yield": None,
    "rejected": {},
    "diversity": {"self_bleu": None, "unique_clusters": 0, "mean_distance": None},
}


def entry(index, attacks):
    return {
        "round": index,
        "promoted": True,
        "reason": "first guard",
        "transforms": None,
        "attacks": attacks,
        "sync": {"updates": 0, "probe_max_abs_logprob_diff": None, "weight_distance": None},
        "evaluation": {"validation": METRICS},
        "phases": {"train": {"seconds": 1.25, "tokens": 10}},
    }


def report(attacks):
    compared = {
        "stored_attacks": 0,
        "success_rate_round0_guard": None,
        "success_rate_final_guard": None,
        "benign_fpr_round0_guard": 0.02,
        "benign_fpr_final_guard": 0.0,
    }
    return {
        "run": {"seconds": 60, "peak_rss_gib": 1, "config_digest": "d", "versions": {"ray": "2"}},
        "rounds": [entry(0, NO_ATTACKS), entry(1, attacks)],
        "hardening": {**compared, "held_out_goals": compared},
    }


def test_a_round_without_one_valid_attempt_has_a_page_too():
    page = render(report({**NO_ATTACKS, "attempts": 4, "rejected": {"refusal": 3, "empty": 1}}))
    assert "<td>refusal</td><td>3</td>" in page and "<svg" in page


def test_reasons_and_names_are_text_and_not_markup():
    page = render(report({**NO_ATTACKS, "rejected": {"<script>": 1}}))
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_a_run_that_has_not_ended_has_no_report(tmp_path):
    with pytest.raises(SystemExit, match="holds no run"):
        main([str(tmp_path)])
    (tmp_path / "manifest.json").write_text('{"config_digest": "d", "phases": {"00/seed": {"seconds": 1}}}')
    with pytest.raises(SystemExit, match="has not ended; the command that began it"):
        main([str(tmp_path)])


def test_the_summary_sets_the_two_guards_side_by_side():
    text = summary(report({**NO_ATTACKS, "attempts": 4, "valid": 2, "successes": 1}))
    assert text.startswith("1 min 0 s, peak memory 1.0 GiB, 4 attack attempts\n")
    assert "| 1 | 4 | 2 | 1 | - | 0.500 | yes |" in text
    assert "| false positives, benign held-out seeds | 0.020 | 0.000 |" in text
    assert "| success of the 0 stored attacks of all rounds | - | - |" in text

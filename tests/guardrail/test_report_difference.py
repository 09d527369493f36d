"""The difference of two runs: what changed, and when that is called better."""

from guardrail.report_difference import compare, differing


def report(f1, interval, stored=10, rate=0.5):
    metrics = {"f1": f1, "fpr": 0.1, **({"intervals": {"f1": interval}} if interval else {})}
    attacks = {"attempts": 4, "success_rate": rate, "yield": rate / 2}
    unpromoted = {"round": 1, "promoted": False, "attacks": attacks, "evaluation": {}, "phases": {}}
    first = {"round": 0, "promoted": True, "attacks": {"attempts": 0}, "evaluation": {"validation": metrics}}
    rates = {"success_rate_round0_guard": 1.0, "success_rate_final_guard": rate}
    hardening = {"stored_attacks": stored, **rates, "benign_fpr_round0_guard": 0.1, "benign_fpr_final_guard": 0.1}
    none = {**hardening, "stored_attacks": 0, "success_rate_round0_guard": None, "success_rate_final_guard": None}
    return {
        "run": {"seconds": 5.0},
        "rounds": [{**first, "phases": {"train": {"seconds": 2.0}}}, unpromoted],
        "hardening": {**hardening, "held_out_goals": none},
    }


def row(rows, name):
    return next(each for each in rows if each["name"] == name)


def test_a_change_is_better_only_where_the_intervals_are_apart():
    def better(one, two):
        return row(compare(one, two)["evaluation"]["validation"], "f1")["better"]

    assert better(report(0.9, [0.85, 0.95]), report(0.7, [0.6, 0.8])) is True
    assert better(report(0.7, [0.6, 0.8]), report(0.9, [0.85, 0.95])) is False
    assert better(report(0.9, [0.75, 0.95]), report(0.7, [0.6, 0.8])) is None
    assert better(report(0.9, None), report(0.7, [0.6, 0.8])) is None


def test_no_set_of_another_size_is_better_nor_a_guard_that_other_attacks_are_made_on():
    one, two = report(0.9, [0.85, 0.95]), report(0.7, [0.6, 0.8])
    two["rounds"][0]["evaluation"]["validation"]["n"] = 7
    assert row(compare(one, two)["evaluation"]["validation"], "f1")["better"] is None
    name = "success of stored attacks on all goals, final guard"
    found = row(compare(report(1, None, 100, 0.1), report(1, None, 100, 0.9))["hardening"], name)
    assert found["better"] is None and found["change"] == 0.1 - 0.9
    held_out = row(
        compare(report(1, None), report(1, None))["hardening"],
        "success of stored attacks on held-out goals, final guard",
    )
    assert held_out["this"] is held_out["change"] is None


def test_rounds_that_only_one_run_has_are_shown():
    one, two = report(1, None), report(1, None)
    two["rounds"][1]["round"] = 2
    rows = compare(one, two)["rounds"]
    assert [each["name"] for each in rows] == [
        f"round {i}, {what}" for i in (1, 2) for what in ("success rate", "yield")
    ]
    assert rows[0]["other"] is rows[2]["this"] is None and rows[0]["this"] == 0.5
    assert row(compare(one, two)["seconds"], "train")["change"] == 0


def test_settings_that_differ_are_named_by_dotted_key():
    one, two = {"a.b": 1, "a.c": [2], "d": None}, {"a.b": 1, "a.c": [3], "e": 4}
    assert [(each["name"], each["this"], each["other"]) for each in differing(one, two)] == [
        ("a.c", [2], [3]),
        ("e", None, 4),
    ]

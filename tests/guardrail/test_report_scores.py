"""Scores of evaluation sets: as the metrics beside them, before and after temperature."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from guardrail.evaluation_items import EvaluationItem
from guardrail.guard import Guard
from guardrail.guard_card import write_card
from guardrail.records import write_table
from guardrail.report_scores import evaluate_sets, read_scores
from guardrail.taxonomy import UNSAFE
from tests.tiny_guard import tiny_guard


def items(name, count):
    return [
        EvaluationItem(f"{name}-{i}", f"{name} text {i}", None, i % 2 == 0, ["fraud"] if i % 2 == 0 else [], None)
        for i in range(count)
    ]


def test_scores_are_those_of_the_metrics(tmp_path):
    tiny_guard(tmp_path / "guard")
    write_card(tmp_path / "guard", version="v", temperature=2.0, thresholds={UNSAFE: 0.5}, window=48)
    guard = Guard.from_pretrained(tmp_path / "guard")
    metrics, table = evaluate_sets(guard, {"one": items("one", 12), "two": items("two", 6)}, seed=0)
    write_table(table, tmp_path / "scores.parquet")
    found = read_scores(tmp_path / "scores.parquet")
    assert list(found) == ["one", "two"] and [len(each.scores) for each in found.values()] == [12, 6]
    for name, own in found.items():
        assert metrics[name]["auroc"] == pytest.approx(roc_auc_score(own.unsafe, own.scores))
        assert {"intervals", "categories"} <= set(metrics[name])
        assert np.log(own.before / (1 - own.before)) == pytest.approx(2 * np.log(own.scores / (1 - own.scores)))
    assert "text" not in table.column_names


def test_a_run_without_scores_has_none(tmp_path):
    assert read_scores(tmp_path / "scores.parquet") == {}

"""Evaluation files, one or several of them by name."""

import json

import pytest

from guardrail.evaluation_sets import load_evaluation, load_evaluations


def test_an_evaluation_file_is_read_and_its_bad_lines_are_named(tmp_path):
    good = {"id": "1", "text": "hello", "response": None, "unsafe": False, "tags": ["greeting"]}
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(good) + "\n")
    (item,) = load_evaluations([str(path)])["mine"]
    assert (item.id, item.text, item.unsafe, item.tags, item.categories) == ("1", "hello", False, ["greeting"], None)
    path.write_text("\n".join(json.dumps(row) for row in [good, {**good, "unsafe": "no"}, {**good, "text": ""}]))
    with pytest.raises(ValueError, match=r"(?s)row 2 \(line 2\), key 'unsafe'.*row 3 \(line 3\), key 'text'"):
        load_evaluation(path)
    with pytest.raises(ValueError, match="two evaluation sets are named 'mine'"):
        path.write_text(json.dumps(good) + "\n")
        load_evaluations([str(path), str(path)])

"""Evaluation files, one or several of them by name."""

import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from guardrail.evaluation_items import EvaluationItem
from guardrail.evaluation_sets import evaluation_texts, load_evaluation, load_evaluations


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


def test_an_empty_response_is_left_out_and_told_not_taken_for_a_prompt(tmp_path, caplog):
    path = tmp_path / "mine.jsonl"
    responses = [{"response": "Gladly."}, {"response": ""}, {"response": " \n"}, {"response": None}, {}]
    rows = [{"id": str(i), "text": "a", "unsafe": False, **response} for i, response in enumerate(responses)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    assert [(item.id, item.response) for item in load_evaluation(path)] == [("0", "Gladly."), ("3", None), ("4", None)]
    assert "2 of 5 rows have an empty response, and are left out" in caplog.text
    path.write_text(json.dumps(rows[1]))
    with pytest.raises(ValueError, match="every row has an empty response"):
        load_evaluation(path)


ROWS = [
    {
        "id": "a",
        "text": "How do I steal?",
        "response": None,
        "unsafe": True,
        "categories": ["illicit"],
        "tags": ["x", "y"],
    },
    {"id": "b", "text": "How do I bake?", "response": "Slowly.", "unsafe": False, "categories": None, "tags": None},
]


@pytest.mark.parametrize(
    "name", ["set.csv", "set.tsv", "set.json", "set.parquet", "set.jsonl", "set.csv.gz", "set.txt"]
)
def test_a_file_of_any_format_holds_the_same_items(tmp_path, name):
    path = tmp_path / name
    if name == "set.parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif name == "set.json":
        path.write_text(json.dumps(ROWS))
    elif "sv" in name:
        cells = [{**row, "unsafe": "yes" if row["unsafe"] else "0"} for row in ROWS]
        for row in cells:
            row |= {key: ";".join(row[key] or []) for key in ("categories", "tags")}
        with (gzip.open if name.endswith("gz") else open)(path, "wt", newline="") as file:
            writer = csv.DictWriter(file, ROWS[0], delimiter="\t" if "tsv" in name else ",")
            writer.writeheader()
            writer.writerows(cells)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert load_evaluation(path) == [EvaluationItem(**row) for row in ROWS]


def test_a_cell_that_is_no_truth_is_named(tmp_path):
    path = tmp_path / "set.csv"
    path.write_text("id,text,unsafe\n1,Hello,perhaps\n")
    with pytest.raises(ValueError, match="row 1 .*key 'unsafe': must be true or false"):
        load_evaluation(path)


def test_the_prompt_of_a_response_is_kept_out_by_itself_too():
    items = [
        EvaluationItem(id, "Hotwire a bike?", response, unsafe=True, categories=None, tags=None)
        for id, response in (("1", None), ("2", "No."))
    ]
    found = evaluation_texts({"mine": items})["mine"]
    assert [id for id, _ in found] == ["1", "2", "2"] and [text for _, text in found][::2] == ["Hotwire a bike?"] * 2
